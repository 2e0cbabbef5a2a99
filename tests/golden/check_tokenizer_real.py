#!/usr/bin/env python3
"""Compares our tokenizer with llama-cpp-python and transformers on a real Gemma 3 GGUF file.

    check_tokenizer_real.py gemma3-270m.gguf build/release/tests/model/tokenize_tool \
        [--count 20000] [--json DIR] [--fixture tests/golden/tokenizer/gemma3_real.jsonl] [FILE...]

Feeds fuzzed text and the given text files to all of them, as text and with special tokens parsed,
and counts texts whose ids differ. --json keeps (or finds again) the tokenizer.json that transformers
makes of the file in DIR and checks our reader of that format, too. Needs tokenizers==0.23.3,
transformers==5.24.0, torch, gguf==0.19.0 and llama-cpp-python==0.3.36.
"""
import argparse
import json
import os
import pathlib
import random
import subprocess
import sys

RUNS = ["\n", "\n\n", "\n\n\n", "  ", "   ", "      ", "\t", "\t\t", "\r\n", " \n ", "\n \n", " \t", " " * 33, "\n" * 33]
MARKERS = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<unused7>", "<table>", "</td>",
           "[multimodal]", "<0x0A>", "<0xFF>", "<pad>", "<unk>", "<mask>", "<start_of_turn", "<<bos>", "<h1>", "</ul>"]
SPECIAL_CHARS = "éàüßñøłžşğ—–…“”‘’«»€£¥§©®™°±×÷←→∑∫√∞≠≤≥αβγδεθλμπσωЖдлфשלמنعم字漢語かなカナ한국어ไทยहिन्दी😀🎉👩‍👧🏽🇩🇪\u00a0\u200b\u200d\u3000\ufeff\u0301\u0308\ufffd"


def fuzz(rng, pieces, count):
    words = [p for p in pieces if p.isascii() and p.strip().isalpha()]
    for _ in range(count):
        kind = rng.randrange(9)
        n = rng.randint(1, 30)
        if kind == 0:
            yield "".join(rng.choice(pieces) for _ in range(n))
        elif kind == 1:
            yield " ".join(rng.choice(words).strip() for _ in range(n)) + rng.choice(".!?,\n ")
        elif kind == 2:
            yield "".join(rng.choice(words) + rng.choice(["", " ", "  ", ",", "-", "'s", "\n"]) for _ in range(n))
        elif kind == 3:
            yield "".join(rng.choice(RUNS + ["a", "x ", " y"]) for _ in range(n))
        elif kind == 4:
            yield "".join(rng.choice(MARKERS + RUNS[:6] + ["Hi", " there", "<", ">"]) for _ in range(n))
        elif kind == 5:
            yield "".join(rng.choice(SPECIAL_CHARS) + rng.choice(["", "", " ", "a"]) for _ in range(n))
        elif kind == 6:
            yield "".join(chr(rng.choice([rng.randrange(32, 127), rng.randrange(160, 0x2000),
                                          rng.randrange(0x2000, 0xD800), rng.randrange(0xE000, 0x30000)]))
                          for _ in range(n))
        elif kind == 7:
            yield "".join(rng.choice("0123456789.,+-*/=()[]{}<>;:_#&|\\\"'`~^%$@! abc") for _ in range(3 * n))
        else:
            yield "".join(rng.choice(rng.choice(["aA", "the", " a", "ha", "=-", "_", ".", "01"])) for _ in range(4 * n))


def chunks(paths, rng):
    for path in paths:
        text = pathlib.Path(path).read_text(errors="ignore").replace("\0", "")
        at = 0
        while at < len(text):
            size = rng.randint(1, 3000)
            yield text[at:at + size]
            at += size


def ours(tool, path, queries):
    lines = "".join(json.dumps({"text": t, "parse_special": p}) + "\n" for t, p in queries)
    out = subprocess.run([tool, path], input=lines, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in out.splitlines()]


def with_llama(path, queries):
    import llama_cpp
    model = llama_cpp.Llama(model_path=path, vocab_only=True, verbose=False)
    return [model.tokenize(t.encode(), add_bos=False, special=p) for t, p in queries]


def with_transformers(backend, queries):
    out = []
    for text, parse in queries:
        backend.encode_special_tokens = not parse
        out.append(backend.encode(text, add_special_tokens=False).ids)
    return out


def transformers_backend(path, directory):
    from tokenizers import Tokenizer
    file = directory / "tokenizer.json"
    if not file.exists():
        from transformers import AutoTokenizer
        tokenizer = AutoTokenizer.from_pretrained(os.path.dirname(os.path.abspath(path)),
                                                  gguf_file=os.path.basename(path))
        directory.mkdir(parents=True, exist_ok=True)
        file.write_text(tokenizer.backend_tokenizer.to_str())
    return Tokenizer.from_file(str(file))


def image_marker_in_text(query):
    """The file has Gemma 3's image markers as user-defined, so the others find them in anyone's text.
    Ours are control entries: a user's words must not open an image."""
    text, parse = query
    return not parse and ("<start_of_image>" in text or "<end_of_image>" in text)


def long_space_run(query):
    """No entry is longer than 31 spaces. SentencePiece and llama.cpp take the longest first, from the
    left (31 + 9); the merges of a tokenizer.json build up by rank (16 + 16 + 8)."""
    return " " * 32 in query[0]


def report(name, queries, left, right, *known):
    """Counts differences, those with a known reason apart; prints some of the others."""
    bad = [i for i in range(len(queries)) if left[i] != right[i]]
    tokens = sum(len(ids) for ids in left)
    print(f"{name}: {len(bad)} of {len(queries)} texts differ ({tokens} tokens)")
    for reason in known:
        explained = [i for i in bad if reason(queries[i])]
        bad = [i for i in bad if not reason(queries[i])]
        print(f"   {len(explained)} by {reason.__name__}")
    print(f"   {len(bad)} without a known reason")
    for i in bad[:8]:
        text, parse = queries[i]
        a, b = left[i], right[i]
        k = next((k for k in range(min(len(a), len(b))) if a[k] != b[k]), min(len(a), len(b)))
        print(f"   parse={parse} {text[:70]!r} at token {k}: {a[k:k + 6]} / {b[k:k + 6]}")
    return len(bad)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf")
    parser.add_argument("tool")
    parser.add_argument("files", nargs="*")
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=pathlib.Path, default=pathlib.Path("build/gemma3_tokenizer_json"))
    parser.add_argument("--fixture", type=pathlib.Path)
    args = parser.parse_args()
    backend = transformers_backend(args.gguf, args.json)
    vocab = backend.get_vocab()
    pieces = sorted(p.replace("▁", " ") for p in vocab if not (p.startswith("<") and p.endswith(">")))
    rng = random.Random(args.seed)
    texts = list(fuzz(rng, pieces, args.count)) + list(chunks(args.files, rng))
    queries = [(t, rng.random() < 0.5) for t in texts]
    mine = ours(args.tool, args.gguf, queries)
    hf = with_transformers(backend, queries)
    llama = with_llama(args.gguf, queries)
    unknown = report("ours (GGUF) / llama-cpp-python", queries, mine, llama, image_marker_in_text)
    unknown += report("ours (GGUF) / transformers", queries, mine, hf, image_marker_in_text, long_space_run)
    unknown += report("ours (tokenizer.json) / transformers", queries,
                      ours(args.tool, str(args.json), queries), hf)
    report("llama-cpp-python / transformers", queries, llama, hf, long_space_run)
    if args.fixture:
        agreed = [i for i in range(args.count)
                  if hf[i] == llama[i] and len(texts[i]) < 120 and not image_marker_in_text(queries[i])]
        with open(args.fixture, "w") as file:
            for i in rng.sample(agreed, min(400, len(agreed))):
                file.write(json.dumps({"text": queries[i][0], "parse": queries[i][1], "ids": hf[i]},
                                      separators=(",", ":")) + "\n")
    return 1 if unknown else 0


if __name__ == "__main__":
    sys.exit(main())
