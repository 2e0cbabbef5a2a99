"""A checkpoint with the true shapes of a released model and random weights, to measure speed with.

    python bench/gpu/random_checkpoint.py tests/golden/configs/gemma-4-31b.json /dev/shm/31b

Writes config.json (its text part), tokenizer.json (a small one of the tests; ids beyond it print as
nothing) and model.safetensors in bf16: matrices normal with 0.02, norms and scalars 1. Values repeat
after 32 Mi numbers, which no kernel can profit from. The names and shapes are those of transformers
(tests/golden/requirements.txt); with --header-only nothing but the file's head is written, and a
later run with numpy alone fills it in: `... OUT` without CONFIG.
"""

import argparse
import json
import os
import pathlib
import shutil
import struct

import numpy

ROOT = pathlib.Path(__file__).resolve().parents[2]
BLOCK = 32 << 20  # numbers


def header_of(config_path):
    import torch
    import transformers
    text = json.loads(config_path.read_text())["text_config"]
    unified = text["model_type"].startswith("gemma4_unified")
    kind = "Gemma4Unified" if unified else "Gemma4"
    config = getattr(transformers, kind + "TextConfig")(**text)
    with torch.device("meta"):
        model = getattr(transformers, kind + "ForCausalLM")(config)
    header, at = {}, 0
    for name, tensor in model.state_dict().items():
        if name.startswith("lm_head") or "inv_freq" in name or "embed_scale" in name:
            continue
        size = 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    return text | {"architectures": [kind + "ForCausalLM"]}, header


def fill(path):
    with open(path, "r+b") as file:
        head = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(head))
        normal = numpy.random.default_rng(1).standard_normal(BLOCK, dtype=numpy.float32) * 0.02
        random = (normal.view(numpy.uint32) >> 16).astype(numpy.uint16).tobytes()
        one = struct.pack("<H", 0x3F80)
        file.seek(8 + head)
        for name, tensor in header.items():  # in the order of their offsets
            size = tensor["data_offsets"][1] - tensor["data_offsets"][0]
            if len(tensor["shape"]) < 2:
                file.write(one * (size // 2))
                continue
            for at in range(0, size, len(random)):
                file.write(random[:min(len(random), size - at)])
    print(f"{path}: {os.path.getsize(path) / 1e9:.1f} GB")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("config", nargs="?", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--header-only", action="store_true")
    args = parser.parse_args()
    weights = args.out / "model.safetensors"
    if args.config is not None:
        config, header = header_of(args.config)
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "config.json").write_text(json.dumps(config, indent=1))
        shutil.copy(ROOT / "tests/golden/models/dense-gpu/tokenizer.json", args.out)
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        weights.write_bytes(struct.pack("<Q", len(encoded)) + encoded)
    if not args.header_only:
        fill(weights)


if __name__ == "__main__":
    main()
