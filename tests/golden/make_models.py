"""Writes tests/golden/models: tiny random checkpoints and what transformers makes of them.

    make goldens            (or: python tests/golden/make_models.py [NAME ...])

For every fixture a seed is searched whose router margin (k-th minus k+1-th score of any token in
any layer) and top-2 gap (along every greedy continuation) stay above MARGIN, so that a difference
in rounding can not change a token. The recorded numbers are those of the saved files, loaded again
with `from_pretrained` in fp32: eager attention, eager experts, one forward pass without a cache; the
greedy tokens come from a loop with a cache, and both must agree.
"""

import argparse
import json
import pathlib
import shutil
import sys

import safetensors.torch
import torch
import transformers

from fixtures import FIXTURES, Fixture
from tiny_tokenizer import write_tokenizer

MARGIN = 1e-3
NOISE = 1.25e-5  # of the recorded log-probabilities: a quarter of what the tests allow
NEW_TOKENS = 64
TOP = 5
MIN_DISTINCT = 20  # distinct tokens of a continuation: a loop would prove little
transformers.utils.logging.disable_progress_bar()
HERE = pathlib.Path(__file__).resolve().parent

CLASSES = {
    "gemma4_flat": (transformers.Gemma4TextConfig, None, transformers.Gemma4ForCausalLM),
    "gemma4_nested": (transformers.Gemma4TextConfig, transformers.Gemma4Config,
                      transformers.Gemma4ForConditionalGeneration),
    "unified_flat": (transformers.Gemma4UnifiedTextConfig, None,
                     transformers.Gemma4UnifiedForCausalLM),
    "unified_nested": (transformers.Gemma4UnifiedTextConfig, transformers.Gemma4UnifiedConfig,
                       transformers.Gemma4UnifiedForConditionalGeneration),
    "gemma3_flat": (transformers.Gemma3TextConfig, None, transformers.Gemma3ForCausalLM),
}


def build(fixture: Fixture):
    text_class, outer_class, model_class = CLASSES[fixture.kind]
    config = text_class(**fixture.text)
    if outer_class is not None:
        config = outer_class(text_config=config.to_dict(), **fixture.towers)
    config._experts_implementation = "eager"
    config._attn_implementation = "eager"
    return model_class(config).eval()


def randomise(model, rng: torch.Generator, plus_one: bool):
    """Gives every parameter a value that matters.

    Norm weights, layer scalars, router and expert scales lie around 1 and differ from it. The final
    norm has mixed signs: the embedding is tied, and with a positive norm the model would mostly
    repeat its input. Gemma 4's query and key norms give scores of a few units; around 1 they would
    be sqrt(head_dim) units, attention would pick single keys, and rounding would be blown up beyond
    what any two implementations can agree on.
    """

    def normal(shape, std):
        return torch.randn(shape, generator=rng) * std

    for name, tensor in list(model.named_parameters()) + list(model.named_buffers()):
        if any(part in name for part in ("tower", "embed_vision", "embed_audio", "vision_embedder")):
            continue
        shape = tensor.shape
        if "inv_freq" in name or "embed_scale" in name or name.startswith("lm_head"):
            continue
        if name.endswith("layer_scalar"):
            value = 0.75 + 0.35 * torch.rand(shape, generator=rng)
        elif name.endswith("per_expert_scale") or name.endswith("router.scale"):
            value = 1.0 + normal(shape, 0.25)
        elif name.endswith("language_model.norm.weight") or name.endswith("model.norm.weight"):
            sign = torch.where(torch.rand(shape, generator=rng) < 0.5, -1.0, 1.0)
            value = sign * (1.0 + 1.2 * torch.rand(shape, generator=rng)) - (1.0 if plus_one else 0.0)
        elif not plus_one and name.endswith(("q_norm.weight", "k_norm.weight")):
            value = (1.0 + normal(shape, 0.25)) * (1.4 * shape[0] ** -0.5) ** 0.5
        elif "norm" in name.rsplit(".", 2)[-2]:
            value = normal(shape, 0.25) + (0.0 if plus_one else 1.0)
        elif name.endswith("embed_tokens.weight"):
            value = normal(shape, shape[1] ** -0.5)
        elif name.endswith("embed_tokens_per_layer.weight"):
            value = normal(shape, model.config.get_text_config().hidden_size_per_layer_input ** -0.5)
        elif name.endswith("router.proj.weight"):
            # scale * H^-1/2 comes on top, and the router's input has unit mean square.
            value = normal(shape, 2.5)
        else:
            value = normal(shape, 1.25 * shape[-1] ** -0.5)
        tensor.data.copy_(value)


def released_text_keys(text: dict, fixture: Fixture) -> dict:
    """The keys as in the released files, instead of the form transformers 5.24 saves."""
    text = dict(text)
    if "per_layer_config" in text:
        del text["per_layer_config"]
        text["global_head_dim"] = fixture.text["global_head_dim"]
        text["num_global_key_value_heads"] = fixture.text["num_global_key_value_heads"]
    if fixture.kind.startswith("gemma3"):
        rope = text.pop("rope_parameters")
        del text["layer_types"], text["_sliding_window_pattern"]
        text["sliding_window_pattern"] = fixture.text["layer_types"].index("full_attention") + 1
        text["rope_theta"] = rope["full_attention"]["rope_theta"]
        text["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    return text


def save(model, fixture: Fixture, folder: pathlib.Path):
    shutil.rmtree(folder, ignore_errors=True)
    model = model.to(torch.bfloat16) if fixture.storage == "bf16" else model
    model.save_pretrained(folder, max_shard_size=fixture.shard_bytes)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if fixture.released_keys:
        if "text_config" in config:
            config["text_config"] = released_text_keys(config["text_config"], fixture)
        else:
            config = released_text_keys(config, fixture)
        path.write_text(json.dumps(config, indent=2) + "\n")
    if fixture.dead_kv:
        add_dead_kv(model, folder)


def add_dead_kv(model, folder: pathlib.Path):
    """The released E models store K/V projections for layers that read another layer's K/V."""
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    text = model.config.get_text_config()
    rng = torch.Generator().manual_seed(5)
    for layer in range(text.num_hidden_layers - text.num_kv_shared_layers, text.num_hidden_layers):
        prefix = f"model.language_model.layers.{layer}.self_attn."
        head_dim = tensors[prefix + "q_norm.weight"].shape[0]
        rows = text.num_key_value_heads * head_dim
        for name, shape in (("k_proj", (rows, text.hidden_size)),
                            ("v_proj", (rows, text.hidden_size)), ("k_norm", (head_dim,))):
            assert prefix + name + ".weight" not in tensors
            tensors[prefix + name + ".weight"] = torch.randn(shape, generator=rng).to(torch.bfloat16)
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


class RouterMargins:
    """The smallest gap between the last chosen and the first refused expert, over all calls."""

    def __init__(self, model):
        self.smallest = float("inf")
        top_k = getattr(model.config.get_text_config(), "top_k_experts", None)
        for name, module in model.named_modules():
            if name.endswith("router.proj"):
                module.register_forward_hook(self._hook(top_k))

    def _hook(self, top_k):
        def hook(module, inputs, scores):
            ordered = scores.float().sort(dim=-1, descending=True).values
            gap = (ordered[..., top_k - 1] - ordered[..., top_k]).min().item()
            self.smallest = min(self.smallest, gap)

        return hook


@torch.no_grad()
def greedy(model, prompt):
    """64 tokens by argmax, one at a time over a cache, ignoring end-of-sequence."""
    out = model(input_ids=torch.tensor([prompt]), use_cache=True)
    tokens = []
    while True:
        tokens.append(int(out.logits[0, -1].argmax()))
        if len(tokens) == NEW_TOKENS:
            return tokens
        out = model(input_ids=torch.tensor([tokens[-1:]]), cache=out.cache, use_cache=True)


@torch.no_grad()
def record(model, name, prompt):
    """One case, or None when the continuation is not clear-cut enough."""
    continuation = greedy(model, prompt)
    if len(set(continuation)) < MIN_DISTINCT:
        return None, "loops"
    logits = model(input_ids=torch.tensor([prompt + continuation[:-1]]), use_cache=False).logits[0]
    logits = logits.float()
    top = logits[len(prompt) - 1:].topk(2).values
    gap = (top[:, 0] - top[:, 1]).min().item()
    if gap < MARGIN:
        return None, f"top-2 gap {gap:.1e}"
    assert logits[len(prompt) - 1:].argmax(-1).tolist() == continuation, "cache changes the tokens"
    logprobs = logits.double().log_softmax(-1)
    actual = torch.tensor(prompt[1:] + continuation)
    best = logprobs.topk(TOP)
    rounded = lambda values: [round(float(v), 7) for v in values]
    return {
        "name": name,
        "prompt": prompt,
        "continuation": continuation,
        "top2_gap": gap,
        # logprobs[i]: of token i + 1 of prompt + continuation, given tokens 0..i.
        "logprobs": rounded(logprobs.gather(1, actual[:, None])[:, 0]),
        "top_ids": best.indices.tolist(),
        "top_logprobs": [rounded(row) for row in best.values],
        "last_prompt_logits": rounded(logits[len(prompt) - 1]),
    }, None


@torch.no_grad()
def noise(model, cases):
    """The largest difference between the recorded log-probabilities and a pass in double."""
    model = model.double()
    worst = 0.0
    for case in cases:
        ids = torch.tensor(case["prompt"] + case["continuation"])
        logprobs = model(input_ids=ids[None, :-1], use_cache=False).logits[0].double().log_softmax(-1)
        ours = torch.tensor(case["logprobs"], dtype=torch.float64)
        worst = max(worst, (logprobs.gather(1, ids[1:, None])[:, 0] - ours).abs().max().item())
    return worst


def load(folder: pathlib.Path, fixture: Fixture):
    model_class = CLASSES[fixture.kind][2]
    model, info = model_class.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager",
        output_loading_info=True)
    wanted, text = fixture.text, model.config.get_text_config()
    assert text.layer_types == wanted["layer_types"], text.layer_types
    head_dims = [layer.self_attn.head_dim for layer in model.base_model.modules()
                 if hasattr(layer, "self_attn") and hasattr(layer, "mlp")
                 and hasattr(layer, "pre_feedforward_layernorm")]
    assert head_dims[-len(wanted["layer_types"]):] == [
        wanted.get("global_head_dim", wanted["head_dim"]) if kind == "full_attention"
        else wanted["head_dim"] for kind in wanted["layer_types"]], head_dims
    missing = [k for k in info["missing_keys"] if not k.startswith("lm_head")]
    assert not missing, missing
    return model.eval()


def attempt(fixture: Fixture, seed: int, folder: pathlib.Path):
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    model = build(fixture)
    randomise(model, rng, plus_one=fixture.kind.startswith("gemma3"))
    save(model, fixture, folder)
    model = load(folder, fixture)
    text = model.config.get_text_config()
    margins = RouterMargins(model)
    window = text.sliding_window
    cases = []
    for name, length in (("short", 3), ("past_window", window + 5), ("long", fixture.long_prompt)):
        prompt = [2] + torch.randint(5, text.vocab_size, (length - 1,), generator=rng).tolist()
        case, why = record(model, name, prompt)
        if case is None:
            return None, f"{name}: {why}"
        if margins.smallest < MARGIN:
            return None, f"{name}: router margin {margins.smallest:.1e}"
        cases.append(case)
    fp32_noise = noise(model, cases)
    if fp32_noise > NOISE:
        return None, f"fp32 and fp64 differ by {fp32_noise:.1e}"
    return {
        "family": fixture.family,
        "made_with": {"torch": torch.__version__.split("+")[0],
                      "transformers": transformers.__version__},
        "seed": seed,
        "router_margin": None if margins.smallest == float("inf") else margins.smallest,
        "fp32_noise": fp32_noise,
        "cases": cases,
    }, None


def make(fixture: Fixture, root: pathlib.Path):
    folder = root / fixture.name
    for seed in range(1, 200):
        golden, why = attempt(fixture, seed, folder)
        if golden is not None:
            break
        print(f"{fixture.name}: seed {seed} refused, {why}", file=sys.stderr)
    else:
        sys.exit(f"{fixture.name}: no seed fits")
    (folder / "golden.json").write_text(
        "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in golden.items()) + "\n}\n")
    if fixture.tokenizer:
        write_tokenizer(folder / "tokenizer.json", fixture.text["vocab_size"])
    for file in folder.iterdir():
        file.chmod(0o644)
    size = sum(f.stat().st_size for f in folder.iterdir())
    gaps = min(case["top2_gap"] for case in golden["cases"])
    print(f"{fixture.name:16} seed {golden['seed']:3}  router margin {golden['router_margin']}  "
          f"top-2 gap {gaps:.1e}  "
          f"noise {golden['fp32_noise']:.1e}  {size / 1024:.0f} KiB", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="fixtures to make; default all")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "models")
    args = parser.parse_args()
    torch.set_num_threads(2)
    known = {f.name: f for f in FIXTURES}
    for name in args.names or known:
        make(known[name], args.out)


if __name__ == "__main__":
    main()
