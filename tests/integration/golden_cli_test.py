"""The promised script command on every golden checkpoint, with 1, 2 and 4 ranks."""

import unittest

import harness
from harness import generate_json, golden, joined

NAMES = sorted(p.parent.name for p in harness.MODELS.glob("*/golden.json"))
LOGPROB_ERROR = 5e-5


class GoldenCliTest(unittest.TestCase):
    def check(self, name, tp, case):
        out = generate_json(
            harness.MODELS / name, "--prompt-ids", joined(case["prompt"]), "--max-tokens", 64,
            "--temperature", 0, "--logprobs", 5, "--prompt-logprobs", 0, "--ignore-eos",
            "--compute", "fp32", "--tp", tp, "--threads", 1, "--kv-memory", "64MiB")
        prompt, expected = len(case["prompt"]), case["logprobs"]
        self.assertEqual(out["token_ids"], case["continuation"])
        self.assertEqual(out["finish_reason"], "length")
        self.assertIsInstance(out["text"], str)
        self.assertEqual(out["usage"]["prompt_tokens"], prompt)
        self.assertEqual(out["usage"]["completion_tokens"], 64)

        self.assertEqual(len(out["logprobs"]), 64)
        for got, want in zip(out["logprobs"], expected[prompt - 1:]):
            self.assertAlmostEqual(got, want, delta=LOGPROB_ERROR)
        self.assertIsNone(out["prompt_logprobs"][0])
        self.assertEqual(len(out["prompt_logprobs"]), prompt)
        for got, want in zip(out["prompt_logprobs"][1:], expected):
            self.assertAlmostEqual(got, want, delta=LOGPROB_ERROR)

        self.assertEqual(len(out["top_logprobs"]), 64)
        for i, row in enumerate(out["top_logprobs"]):
            self.assertEqual(len(row), 5)
            values = [entry["logprob"] for entry in row]
            self.assertEqual(values, sorted(values, reverse=True))
            self.assertEqual(row[0]["id"], case["continuation"][i])
            self.assertTrue(all(isinstance(entry["token"], str) for entry in row))
            for got, want in zip(values, case["top_logprobs"][prompt - 1 + i]):
                self.assertAlmostEqual(got, want, delta=LOGPROB_ERROR)


def add(name, tp):
    def test(self):
        cases = {case["name"]: case for case in golden(name)["cases"]}
        self.check(name, tp, cases["past_window" if tp > 1 else "long"])

    setattr(GoldenCliTest, f"test_{name.replace('-', '_')}_tp{tp}", test)


for model in NAMES:
    for ranks in (1, 2, 4):
        add(model, ranks)

if __name__ == "__main__":
    harness.main()
