"""Records what two other programs think of page.txt on the Gemma 3 270M GGUF file.

    python -m venv .venv-quality && .venv-quality/bin/pip install -r bench/quality/requirements.txt
    .venv-quality/bin/python bench/quality/make_expected.py models/gemma-3-270m-q4_k_m.gguf

Writes expected_270m.json: the page's token ids (one BOS in front) and, for every token after it, its
log-probability by transformers (the same file dequantised; fp32 and bf16) and by llama.cpp (which
computes from the blocks). real_weights.py compares Lapidary with these numbers.
"""

import argparse
import hashlib
import json
import pathlib

import llama_cpp
import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, GgufConfig

HERE = pathlib.Path(__file__).resolve().parent


def without_extra_buffers():
    """llama.cpp's default model parameters, minus the AMX repacking: on a virtual machine that shows
    AMX and does not allow it, the first tile instruction ends the process."""
    params = DEFAULT_PARAMS()
    params.use_extra_bufts = False
    return params


DEFAULT_PARAMS = llama_cpp.llama_cpp.llama_model_default_params
llama_cpp.llama_cpp.llama_model_default_params = without_extra_buffers


def by_transformers(path: pathlib.Path, ids, dtype):
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=dtype, attn_implementation="eager",
        quantization_config=GgufConfig(dequantize=True)).eval()
    with torch.no_grad():
        hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        logprobs = []
        for begin in range(0, len(ids) - 1, 64):  # 64 rows of 262,144 logits at a time
            rows = model.lm_head(hidden[begin:min(begin + 64, len(ids) - 1)]).double()
            target = torch.tensor(ids[begin + 1:begin + 1 + len(rows)])
            logprobs += rows.log_softmax(-1).gather(1, target[:, None])[:, 0].tolist()
    return logprobs


def by_llama_cpp(model: llama_cpp.Llama, ids):
    model.reset()
    model.eval(ids)
    logprobs = []
    for i in range(len(ids) - 1):
        row = model.scores[i].astype(np.float64)
        top = row.max()
        logprobs.append(float(row[ids[i + 1]] - top - np.log(np.exp(row - top).sum())))
    return logprobs


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("gguf", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "expected_270m.json")
    args = parser.parse_args()
    text = (HERE / "page.txt").read_text(encoding="utf-8")
    llama = llama_cpp.Llama(str(args.gguf), n_ctx=2048, n_batch=2048, n_threads=2, logits_all=True,
                            verbose=False)
    ids = llama.tokenize(text.encode(), add_bos=True, special=False)
    round6 = lambda values: [round(v, 6) for v in values]
    recorded = {
        "model_sha256": hashlib.sha256(args.gguf.read_bytes()).hexdigest(),
        "made_with": {"torch": torch.__version__.split("+")[0],
                      "transformers": transformers.__version__,
                      "llama_cpp_python": llama_cpp.__version__},
        "ids": ids,
        "llama_cpp": round6(by_llama_cpp(llama, ids)),
        "transformers_fp32": round6(by_transformers(args.gguf, ids, torch.float32)),
        "transformers_bf16": round6(by_transformers(args.gguf, ids, torch.bfloat16)),
    }
    args.out.write_text(
        "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in recorded.items()) + "\n}\n")
    base = np.array(recorded["transformers_fp32"])
    for name in ("transformers_fp32", "transformers_bf16", "llama_cpp"):
        values = np.array(recorded[name])
        print(f"{name:18} perplexity {np.exp(-values.mean()):.3f}  mean {values.mean():+.4f}  "
              f"mean difference {(values - base).mean():+.5f}  "
              f"largest {np.abs(values - base).max():.4f}")


if __name__ == "__main__":
    main()
