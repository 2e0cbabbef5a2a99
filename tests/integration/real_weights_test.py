"""Gemma 3 270M through the promised command, against transformers (bench/quality)."""

import os
import subprocess
import sys
import unittest

import harness


class RealWeightsTest(unittest.TestCase):
    def check(self, *args):
        gguf = os.environ.get("LAPIDARY_GEMMA3_GGUF")
        if not gguf:
            self.skipTest("LAPIDARY_GEMMA3_GGUF is not set")
        script = harness.ROOT / "bench" / "quality" / "real_weights.py"
        done = subprocess.run([sys.executable, script, gguf, "--lapidary", harness.BINARY, *args],
                              capture_output=True, text=True)
        print(done.stdout)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_page_of_english(self):
        self.check("--kv-type", "auto")

    def test_int8_pages(self):
        self.check("--compute", "int8", "--kv-type", "int8", "--tokens", "300")

    def test_two_ranks(self):
        self.check("--tp", "2", "--compute", "int8", "fp32", "--kv-type", "auto", "--tokens", "300")

    def test_text_goes_on(self):
        gguf = os.environ.get("LAPIDARY_GEMMA3_GGUF")
        if not gguf:
            self.skipTest("LAPIDARY_GEMMA3_GGUF is not set")
        out = harness.generate_json(gguf, "--prompt", "The capital of France is the city of",
                                    "--max-tokens", 4, "--temperature", 0)
        self.assertIn("Paris", out["text"])


if __name__ == "__main__":
    harness.main()
