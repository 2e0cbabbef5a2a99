"""Random small checkpoints of every family, through the command that scripts rely on.

    python bench/quality/random_models.py --count 20 --seed 1 build/lapidary
    (in the environment of tests/golden/requirements.txt)

Shapes are drawn, not chosen: head sizes from 12 up, odd windows, widths and vocabularies without a
factor of 16, layers after the last global one, kv heads that ranks do not divide, nested and flat
configs in both key styles, bf16 and fp32 files. Each is asked for 64 greedy tokens at 1, 2 and 4
ranks; tokens must be those of transformers in fp32, wherever its two best logits are further apart
than rounding, and log-probabilities within 5e-5, or within twice what transformers' own fp32 differs
from fp64 on that checkpoint. Exit status 1 when one does not.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile

import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests" / "golden"))
import make_models  # noqa: E402
from fixtures import Fixture, gemma4_text, layer_types  # noqa: E402

LIMIT = 5e-5
TOKENS = 64
CLEAR = 1e-3  # a top-2 gap below it may go either way


def draw(rng: random.Random, index: int) -> Fixture:
    """One fixture; families in turn."""
    family = ["31B-like", "26B-like", "E-like", "12B-like", "Gemma-3-like"][index % 5]
    kv_heads = rng.choice([1, 2, 3, 5])
    heads = kv_heads * rng.choice([2, 3, 4])
    while heads < 4:
        heads += kv_heads
    # Gemma's layer patterns; often with sliding layers after the last global one.
    pattern = "".join(rng.choice(["SF", "SSF", "SSSF"]) for _ in range(2)) + rng.choice(["", "S", "SS"])
    common = dict(
        vocab_size=rng.randrange(130, 400), # transformers wants a multiple of the heads
        hidden_size=2 * heads * rng.randrange(max(1, 20 // heads), max(2, 45 // heads) + 1),
        intermediate_size=rng.randrange(30, 90), num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=2 * rng.randrange(6, 20),
        sliding_window=rng.randrange(3, 40))
    storage = rng.choice(["bf16", "fp32"])
    options = dict(storage=storage, released_keys=rng.random() < 0.5,
                   shard_bytes=rng.choice([1 << 30, 120_000]), long_prompt=rng.randrange(60, 200))
    if family == "Gemma-3-like":
        text = dict(
            num_hidden_layers=len(pattern), layer_types=layer_types(pattern),
            query_pre_attn_scalar=rng.randrange(10, 40), max_position_embeddings=1024,
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {"rope_type": "default", "rope_theta": 1e6}}, **common)
        # The released keys say "every n-th layer is global", which holds for regular patterns only.
        options["released_keys"] = False
        return Fixture(f"random-{index}", family, "gemma3_flat", text, **options)
    global_dim = 4 * rng.randrange(3, 12)
    partial = rng.choice([0.25, 0.5])
    fields = dict(common)
    kind = rng.choice(["gemma4_flat", "gemma4_nested"])
    towers = dict(vision_config=None, audio_config=None) if kind == "gemma4_nested" else {}
    if family == "12B-like":
        kind, towers = "unified_flat", {}
    else:
        fields.update(hidden_size_per_layer_input=0, vocab_size_per_layer_input=common["vocab_size"])
    global_kv = None
    if family == "E-like":
        shared = rng.randrange(1, 3)
        pattern = pattern.rstrip("S") + "SF" * 1
        # A shared layer reads the last owning layer of its kind: both kinds must own one.
        while len(set(pattern[:len(pattern) - shared])) < 2:
            pattern = "SF" + pattern
        fields.update(hidden_size_per_layer_input=rng.randrange(8, 33), num_kv_shared_layers=shared,
                      vocab_size_per_layer_input=common["vocab_size"],
                      use_double_wide_mlp=rng.random() < 0.5)
    else:
        global_kv = rng.choice([k for k in (1, 2, 3, 5) if heads % k == 0])
        fields.update(attention_k_eq_v=True)
    if family == "26B-like":
        experts = rng.randrange(5, 12)
        fields.update(enable_moe_block=True, num_experts=experts, top_k_experts=rng.randrange(2, 4),
                      moe_intermediate_size=rng.randrange(9, 40))
    text = gemma4_text(pattern, global_head_dim=global_dim, global_kv_heads=global_kv,
                       partial=partial, **fields)
    return Fixture(f"random-{index}", family, kind, text, towers=towers, **options)


@torch.no_grad()
def expected(model, prompt):
    """Greedy tokens, log-probabilities of prompt and tokens, the smallest top-2 gap, fp32's own error."""
    tokens = make_models.greedy(model, prompt)
    ids = torch.tensor(prompt + tokens)
    logits = model(input_ids=ids[None, :-1], use_cache=False).logits[0]
    top = logits[len(prompt) - 1:].float().topk(2).values
    logprobs = logits.double().log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    return tokens, logprobs, (top[:, 0] - top[:, 1])


@torch.no_grad()
def fp64_error(model, prompt, tokens, logprobs):
    ids = torch.tensor(prompt + tokens)
    exact = model.double()(input_ids=ids[None, :-1], use_cache=False).logits[0].log_softmax(-1)
    model.float()
    return (exact.gather(1, ids[1:, None])[:, 0] - logprobs).abs().max().item()


def ask(cli, folder, prompt, ranks):
    command = [cli, "generate", str(folder), "--prompt-ids", ",".join(map(str, prompt)), "--max-tokens",
               str(TOKENS), "--temperature", "0", "--logprobs", "5", "--prompt-logprobs", "0",
               "--ignore-eos", "--compute", "fp32", "--tp", str(ranks), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        return None, done.stderr.strip().splitlines()[-1:]
    return json.loads(done.stdout), None


def compare(answer, prompt, tokens, logprobs, gaps):
    """Tokens that agree before the first difference, and the largest error over what agrees."""
    same = next((i for i, (a, b) in enumerate(zip(answer["token_ids"], tokens)) if a != b), TOKENS)
    ours = answer["prompt_logprobs"][1:] + answer["logprobs"][:same]
    error = (torch.tensor(ours, dtype=torch.float64) - logprobs[:len(ours)]).abs().max().item()
    excused = same < TOKENS and gaps[same].item() < CLEAR
    return same, excused, error


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cli", help="the lapidary binary")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--serve-flags", default="", help="more flags for the command")
    args = parser.parse_args()
    torch.set_num_threads(1)
    failures = 0
    for index in range(args.count):
        rng = random.Random(args.seed * 1000 + index)
        fixture = draw(rng, index)
        with tempfile.TemporaryDirectory() as root:
            folder = pathlib.Path(root) / fixture.name
            torch.manual_seed(index)
            model = make_models.build(fixture)
            make_models.randomise(model, torch.Generator().manual_seed(args.seed * 1000 + index),
                                  plus_one=fixture.kind.startswith("gemma3"))
            make_models.save(model, fixture, folder)
            model = make_models.load(folder, fixture)
            vocab = fixture.text["vocab_size"]
            prompt = [2] + [rng.randrange(5, vocab) for _ in range(rng.choice([2, 30, fixture.long_prompt]))]
            tokens, logprobs, gaps = expected(model, prompt)
            own = fp64_error(model, prompt, tokens, logprobs)
            limit = max(LIMIT, 2 * own)
            cells = []
            for ranks in (1, 2, 4):
                answer, why = ask(args.cli, folder, prompt, ranks)
                if answer is None:
                    failures += 1
                    cells.append(f"FAILED {why}")
                    continue
                same, excused, error = compare(answer, prompt, tokens, logprobs, gaps)
                good = (same == TOKENS or excused) and error <= limit
                failures += not good
                cells.append(f"{same}/{TOKENS} {error:.1e}{'' if good else ' WRONG'}")
        text = fixture.text
        print(f"{fixture.name:10} {fixture.family:13} {fixture.kind:15} {fixture.storage} "
              f"layers {len(text['layer_types'])} heads {text['num_attention_heads']}/"
              f"{text['num_key_value_heads']} of {text['head_dim']}/{text.get('global_head_dim', '-')} "
              f"window {text['sliding_window']} vocab {vocab} prompt {len(prompt)} | own error {own:.1e} | "
              f"TP 1/2/4: {' | '.join(cells)}", flush=True)
    print(f"{args.count} checkpoints, {failures} failures")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
