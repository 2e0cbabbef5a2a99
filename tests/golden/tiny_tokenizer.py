"""A small tokenizer.json in Gemma 4's form: control tokens, byte tokens, characters, merges."""

import json
import pathlib

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|tool>", "<tool|>", "<|tool_call>",
           "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>', "<|think|>",
           "<|channel>", "<channel|>", "<|turn>", "<turn|>"]
CORPUS = [
    "The harbour was quiet before sunrise, and the small boats lay side by side along the wall.",
    "Nobody in the village could say who had planted the first apple tree behind the old mill.",
    "When the rain stopped, the children ran down to the river and counted the stones again.",
    "for (int i = 0; i < n; ++i) { total += values[i]; }",
    "She kept a list of birds in a blue notebook: heron, wren, kingfisher, and once an owl at dusk.",
    "Each of them took a lantern, a loaf of bread and the longest rope that they could carry.",
    "A letter had come in the morning; the answer was written, sealed and sent before noon.",
]


def write_tokenizer(path: pathlib.Path, vocab_size: int):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    reserved = SPECIAL + [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=reserved,
                                  show_progress=False, max_token_length=12)
    tokenizer.train_from_iterator(CORPUS, trainer)
    assert tokenizer.get_vocab_size() == vocab_size, tokenizer.get_vocab_size()
    data = json.loads(tokenizer.to_str())
    # The trainer marks every reserved entry as special; byte tokens are ordinary vocabulary.
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] in SPECIAL]
    path.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
