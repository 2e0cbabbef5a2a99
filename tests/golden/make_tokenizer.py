#!/usr/bin/env python3
"""Trains a small vocabulary in Gemma's form and records what `tokenizers` makes of many texts.

Writes tests/golden/tokenizer/{tokenizer.json,cases.jsonl}. Run it in an environment with
tokenizers==0.23.3 (tests/golden/requirements.txt); the files are committed, tests need no Python.
"""
import argparse
import json
import pathlib
import random

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

HERE = pathlib.Path(__file__).parent
CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|turn>", "<turn|>", "<|think|>",
           "<|channel>", "<channel|>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>",
           "<|tool_response>", "<tool_response|>", '<|"|>', "<|image|>", "<start_of_turn>",
           "<end_of_turn>"]
RUNS = ["\n" * n for n in range(1, 6)] + ["\t" * n for n in range(2, 5)] + ["<table>", "</table>",
                                                                          "<td>", "</td>", "[multimodal]"]
WORDS = """the of and to in a is that it was for on are as with his they at be this from have or by
one had not but what all were when we there can an your which their said if do will each about how
up out them then she many some so these would other into has more her two like him see time could no
make than first been its who now people my made over did down only way find use may water long little
very after words called just where most know get through back much before go good new write our used
me man too any day same right look think also around another came come work three word must because
does part even place well such here take why things help put years different away again off went old
number great tell men say small every found still between name should home big give air line set own
under read last never us left end along while might next sound below saw something thought both few
tokenizer scheduler attention quantised gradient language model inference cluster""".split()
OTHER = ["naïve café déjà vu", "Straße über Äpfel", "Привет, мир! Как дела?", "こんにちは世界、東京",
         "안녕하세요 세계", "你好，世界。今天天气很好", "مرحبا بالعالم", "שלום עולם", "नमस्ते दुनिया",
         "😀😃🎉👩‍👩‍👧 👍🏽", "x = [1, 2, 3]; y = {'a': 4.5e-6}", "for (int i = 0; i < n; ++i) {",
         "<table>\n\t<td>cell</td>\n</table>", "a  b   c    d     e", "1234567890 3.14159 0x1F"]


def invented_words(rng, count):
    parts = "ba co di fu ge hi jo ku la me ni or pre qua re st ter un ver wi xen yo za th ing ed ly".split()
    return ["".join(rng.choice(parts) for _ in range(rng.randint(1, 4))) for _ in range(count)]


def corpus(rng):
    words = WORDS * 8 + invented_words(rng, 2500)
    for _ in range(4000):
        line = " ".join(rng.choice(words) for _ in range(rng.randint(3, 14)))
        end = rng.choice([".", "!", "?", ",", ":", ";", "...", " -", "\n", "\n\n"])
        yield (line.capitalize() if rng.random() < 0.4 else line) + end
        if rng.random() < 0.5:
            yield rng.choice(OTHER)


def train(rng):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=5000, min_frequency=2, show_progress=False,
                                  special_tokens=CONTROL + RUNS + bytes_, limit_alphabet=400,
                                  max_token_length=24)
    # A word at a time: else merges of whole sentences, which the real training did not make.
    lines = list(corpus(rng))
    words = []
    for line in lines:
        line = line.replace(" ", "▁")
        at = 0
        for i in range(1, len(line)):
            if line[i] == "▁" and line[i - 1] != "▁" and rng.random() < 0.97:
                words.append(line[at:i])
                at = i
        words.append(line[at:])
    tokenizer.train_from_iterator(words, trainer)
    # The trainer made all of these special. Byte entries must be plain, runs added but not special.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] not in bytes_]
    for token in state["added_tokens"]:
        token["special"] = token["content"] in CONTROL
        token["normalized"] = False
    return Tokenizer.from_str(json.dumps(state, ensure_ascii=False))


def texts(rng):
    fixed = ["", " ", "  ", "\n", "\n\n\n\n\n\n\n\n", "▁", "▁▁▁", "a▁b", "Hello, world!", "<bos>Hello,",
             "<|turn>user\nHi<turn|>\n", "<<bos>>", "<bos", "bos>", "< bos >", "<0x0A>", "<0x41><0x42>",
             "\u0000", "\ufffd", "\u2028", "\u00a0x\u00a0", "\r\n\r\n", "\t\t\t\t\t\t\t", "e\u0301", "ﬁ",
             "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "<|\"|>", "<|tool_call>call:f{}<tool_call|>", "[multimodal]", "<table></td>",
             "\U0010ffff", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]
    yield from fixed
    yield from OTHER
    pieces = CONTROL + RUNS + WORDS + OTHER + [" ", "  ", "\n", "▁", "<", ">", "|", "é", "\u0301", "字",
                                               "😀", "\u200d", "0", "12", "'", '"', "…", "—", "\r", "\t"]
    for _ in range(500):
        n = rng.randint(1, 12)
        yield "".join(rng.choice(pieces) + (" " if rng.random() < 0.4 else "") for _ in range(n))
    for _ in range(150):
        alphabet = rng.choice(["ab ", "the ", "<|>bos", " \n\t", "tokenizr", "éàü ", "  ▁a"])
        yield "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 120)))
    for _ in range(150):
        n = rng.randint(1, 20)
        yield "".join(chr(c) for c in (rng.choice([rng.randrange(0x20, 0x7f), rng.randrange(1, 0x800),
                                                   rng.randrange(0x800, 0xd800), rng.randrange(0x10000, 0x30000)])
                                       for _ in range(n)))
    for _ in range(40):  # one stretch without a cut: long enough for the other merging algorithm
        yield "".join(rng.choice(WORDS) for _ in range(rng.randint(20, 60)))


def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    out = HERE / "tokenizer"
    out.mkdir(exist_ok=True)
    rng = random.Random(20)
    tokenizer = train(rng)
    (out / "tokenizer.json").write_text(
        json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":")) + "\n")
    with open(out / "cases.jsonl", "w") as file:
        for text in texts(rng):
            case = {"text": text}
            for key, as_text in (("parse", False), ("as_text", True)):
                tokenizer.encode_special_tokens = as_text
                case[key] = tokenizer.encode(text, add_special_tokens=False).ids
            case["decoded"] = tokenizer.decode(case["parse"], skip_special_tokens=False)
            case["skipped"] = tokenizer.decode(case["parse"], skip_special_tokens=True)
            if case["as_text"] == case["parse"]:
                del case["as_text"]
            if case["skipped"] == case["decoded"]:
                del case["skipped"]
            if case["decoded"] == case["text"]:
                del case["decoded"]
            file.write(json.dumps(case, ensure_ascii=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
