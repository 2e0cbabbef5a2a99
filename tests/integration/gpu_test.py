"""GPU ranks end to end: serve with --device cuda over emulated GPUs, through the real coordinator.

The GPU part of the worker is the real one, linked with the SIMT executor and the stand-ins of
tests/support/cuda instead of CUDA's libraries (LAPIDARY_GPU_LIBRARY).
"""

import json
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import unittest

import harness
from harness import Server, Stream, alive, children_of, generate_json, golden, joined, run, wait_until

LIBRARY = os.environ.get("LAPIDARY_GPU_LIBRARY", "")
REAL_LIBRARY = pathlib.Path(harness.BINARY).resolve().parent / "liblapidary_cuda.so"
# Emulation is slow: without the large target its steps would be cut to a few tokens.
GPU = ("--device", "cuda", "--cuda-library", LIBRARY, "--kv-memory", "16MiB", "--threads", 1,
       "--step-time-target", 100000)
CPU = ("--compute", "bf16", "--threads", 1, "--kv-memory", "64MiB")
# Largest difference of a log-probability from the CPU's bf16: docs/numerics.md, "What a GPU may
# change". Of models with experts one position in twenty may lie beyond it.
TOLERANCE = {"dense-gpu": 0.25, "moe-gpu": 0.76, "ple-gpu": 0.35}
CONTINUED = 16  # tokens
GREEDY = ("--temperature", 0, "--ignore-eos")
# Every kernel of a worker but those that need another shape or another chip than the models have:
# grouped_wgmma_product (64 tokens of one expert in a step), paged_generic (other head sizes),
# soft_cap (logits of more than 64 rows in a step), one_shot_all_reduce (off unless asked for).
KERNELS = {
    "add_normed", "add_normed_pair", "combine_splits", "draw_tokens", "embed", "expert_combine",
    "expert_sort", "find_token", "finish_thresholds", "gate_embedding", "gated_gelu",
    "gather_rows", "grouped_product", "kept_mass", "logit_edits", "mix_embeddings",
    "norm_rope_write", "paged_decode", "paged_prefill", "resolve_ids", "rms_norm", "rotation",
    "round_rows", "router_logits", "router_top_k", "shard_lists", "shard_tiles",
    "stream_product", "threshold_histogram", "threshold_narrow",
}


# A request that takes every path of the sampler.
SAMPLED = ("--temperature", 1, "--seed", 5, "--top-p", 0.9, "--min-p", 0.001,
           "--repetition-penalty", 1.1, "--frequency-penalty", 0.1)


class GpuTest(unittest.TestCase):
    launches = {}

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.set_environment(SIMT_DEVICES="4", SIMT_REPORT=self.folder.name + "/%p.json")

    def set_environment(self, **values):
        for name, value in values.items():
            before = os.environ.get(name)
            os.environ[name] = value
            self.addCleanup(lambda n=name, b=before: os.environ.pop(n) if b is None
                            else os.environ.__setitem__(n, b))

    def serve(self, model, *args):
        server = Server(harness.MODELS / model, *args)
        self.addCleanup(server.close)
        return server

    def stop(self, server):
        server.signal(signal.SIGINT)
        self.assertEqual(server.wait(), 0, server.stderr())

    def reports(self):
        """Launches of each kernel, of each process."""
        return [{k["kernel"]: k["launches"] for k in json.loads(path.read_text())}
                for path in pathlib.Path(self.folder.name).glob("*.json")]

    # -- Numbers.

    def answers(self, server, model):
        """Log-probabilities along the recorded tokens, and greedy continuations, of every case."""
        found = []
        for case in golden(model)["cases"]:
            ids = case["prompt"] + case["continuation"][:CONTINUED]
            forced = generate_json("--server", server.address, "--prompt-ids", joined(ids),
                                   "--max-tokens", 1, "--prompt-logprobs", 0, *GREEDY)
            free = generate_json("--server", server.address, "--prompt-ids", joined(case["prompt"]),
                                 "--max-tokens", CONTINUED, "--logprobs", 2, *GREEDY)
            found.append((forced["prompt_logprobs"][1:], free))
        return found

    def check_numbers(self, model, ranks, *args):
        cpu = self.serve(model, *CPU)
        expected = self.answers(cpu, model)
        self.stop(cpu)
        gpu = self.serve(model, *GPU, "--tp", ranks, *args)
        found = self.answers(gpu, model)
        generate_json("--server", gpu.address, "--prompt-ids", "2,5,7", "--max-tokens", 12,
                      *SAMPLED)
        self.stop(gpu)

        tolerance = TOLERANCE[model]
        errors = [abs(a - b) for (ours, _), (theirs, _) in zip(found, expected, strict=True)
                  for a, b in zip(ours, theirs, strict=True)]
        self.assertFalse(any(map(math.isnan, errors)))
        beyond = sum(e > tolerance for e in errors)
        self.assertLessEqual(beyond, len(errors) // 20 if model.startswith("moe") else 0,
                             f"{beyond} of {len(errors)}, largest {max(errors)}")
        self.assertGreater(max(errors), 1e-4, "these are not a GPU's numbers")

        equal = 0
        for (_, ours), (_, theirs) in zip(found, expected, strict=True):
            for i, (a, b) in enumerate(zip(ours["token_ids"], theirs["token_ids"], strict=True)):
                best, second = (t["logprob"] for t in theirs["top_logprobs"][i])
                if a != b:
                    self.assertLess(best - second, 2 * tolerance, f"token {i}: {a}, not {b}")
                    break  # from here on they answer different prompts
                equal += 1
        self.assertGreater(equal, 0)
        reports = self.reports()
        self.assertEqual(len(reports), ranks)
        for report in reports:  # every rank did its part
            self.assertEqual(report.keys(), reports[0].keys())
            for kernel, count in report.items():
                GpuTest.launches[kernel] = GpuTest.launches.get(kernel, 0) + count
        print(f"{model}, {ranks} ranks: {len(errors)} log-probabilities differ by "
              f"{sum(errors) / len(errors):.4f} on average, {max(errors):.3f} at most; "
              f"{equal} greedy tokens equal; launches {sum(sum(r.values()) for r in reports)}")

    def test_numbers(self):
        for model, ranks in (("dense-gpu", 1), ("dense-gpu", 4), ("moe-gpu", 2), ("ple-gpu", 2)):
            with self.subTest(model=model, ranks=ranks):
                for path in pathlib.Path(self.folder.name).glob("*.json"):
                    path.unlink()
                self.check_numbers(model, ranks)
        missing = KERNELS - GpuTest.launches.keys()
        self.assertFalse(missing, f"no launch of {sorted(missing)}")
        for kernel, count in sorted(GpuTest.launches.items()):
            print(f"{kernel:24} {count:8}")

    def test_eight_bit_numbers(self):
        ids = joined(golden("moe-gpu")["cases"][0]["prompt"])
        plain = generate_json(harness.MODELS / "moe-gpu", *GPU, "--prompt-ids", ids,
                              "--max-tokens", 1, "--prompt-logprobs", 0, *GREEDY)
        for args in (("--compute", "fp8"), ("--kv-type", "fp8")):
            coarse = generate_json(harness.MODELS / "moe-gpu", *GPU, *args, "--prompt-ids", ids,
                                   "--max-tokens", 1, "--prompt-logprobs", 0, *GREEDY)
            errors = [abs(a - b) for a, b in zip(plain["prompt_logprobs"][1:],
                                                 coarse["prompt_logprobs"][1:], strict=True)]
            self.assertGreater(max(errors), 1e-3, f"{args} changed nothing")
            self.assertLess(sum(errors) / len(errors), 1.5, f"{args}: {errors}")
        self.assertTrue(any("quantize_rows" in report for report in self.reports()))

    def test_graphs_change_no_bit(self):
        """Many at once, so that steps of several widths are replayed."""
        answers = []
        for flag in ("--cuda-graphs", "--no-cuda-graphs"):
            server = self.serve("dense-gpu", *GPU, "--tp", 2, flag)
            answer = generate_json("--server", server.address, "--prompt-ids", "2,5,7,11,13",
                                   "--max-tokens", 40, "--logprobs", 3, *SAMPLED, "--n", 5)
            answers.append([[choice[key] for key in ("token_ids", "logprobs", "top_logprobs")]
                            for choice in answer["choices"]])
            self.stop(server)
        self.assertEqual(answers[0], answers[1])

    def test_one_shot_sums_change_no_bit(self):
        """Two numbers have one sum, rounded once, whoever adds them."""
        answers = []
        for args in (("--all-reduce", "nccl"), ("--all-reduce", "one-shot"),
                     ("--all-reduce", "one-shot", "--no-cuda-graphs")):
            for path in pathlib.Path(self.folder.name).glob("*.json"):
                path.unlink()
            server = self.serve("moe-gpu", *GPU, "--tp", 2, *args)
            for settings in (GREEDY, SAMPLED):
                answer = generate_json("--server", server.address, "--prompt-ids", "2,5,7,11,13",
                                       "--max-tokens", 16, "--logprobs", 3, *settings)
                answers.append([answer[key] for key in ("token_ids", "logprobs", "top_logprobs")])
            self.stop(server)
            one_shot = "one-shot" in args
            self.assertEqual("unproven on hardware" in server.stderr(), one_shot)
            for report in self.reports():
                self.assertEqual(report.get("one_shot_all_reduce", 0) > 100, one_shot, report)
        self.assertEqual(answers[:2], answers[2:4])
        self.assertEqual(answers[:2], answers[4:])

    def test_one_shot_sums_without_peer_access_are_nccl_s(self):
        self.set_environment(SIMT_NO_PEERS="1")
        server = self.serve("dense-gpu", *GPU, "--tp", 2, "--all-reduce", "one-shot")
        generate_json("--server", server.address, "--prompt-ids", "2,5", "--max-tokens", 2, *GREEDY)
        self.stop(server)
        self.assertIn("no one-shot all-reduce here, NCCL sums: rank 0: GPU 0 does not reach the "
                      "memory of GPU 1", server.stderr())
        self.assertFalse(any("one_shot_all_reduce" in report for report in self.reports()))

    # -- Failures.

    def test_kill_of_a_rank_in_mid_stream(self):
        for how in ("nccl", "one-shot"):
            with self.subTest(all_reduce=how):
                self.kill_a_rank("--all-reduce", how)

    def kill_a_rank(self, *args):
        server = self.serve("moe-gpu", *GPU, "--tp", 2, *args)
        everyone = children_of(server.pid)
        self.assertEqual(len(everyone), 3)
        stream = Stream(server, "--prompt-ids", "2,5,7", "--max-tokens", 400, *GREEDY)
        self.addCleanup(stream.close)
        stream.await_first()
        os.kill(server.rank(1), signal.SIGKILL)
        self.assertEqual(stream.wait(), 1, stream.stderr())
        self.assertRegex(stream.stderr(), "rank 1|group")
        self.assertEqual(server.wait(), 1)
        self.assertIn("rank 1", server.stderr())
        wait_until(lambda: not any(map(alive, everyone)), f"end of {everyone}", deadline=20)

    def refused(self, *args):
        done = run("generate", harness.MODELS / "dense-gpu", "--device", "cuda", "--prompt-ids",
                   "2,5", "--max-tokens", 1, "--kv-memory", "16MiB", *args)
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertEqual(done.stdout, "")
        return done.stderr

    def test_what_is_missing_is_named(self):
        self.assertIn("/absent/liblapidary_cuda.so: cannot open",
                      self.refused("--cuda-library", "/absent/liblapidary_cuda.so"))
        self.assertIn("rank 1 is to use GPU 1, there are 1",
                      self.with_environment({"SIMT_DEVICES": "1"}, "--tp", 2))
        self.assertIn("the driver sees no GPU", self.with_environment({"SIMT_DEVICES": "0"}))
        self.assertIn("the NVIDIA driver is missing",
                      self.with_environment({"SIMT_NO_DRIVER": "1"}))
        self.assertIn("a GPU computes in bf16 or fp8, not in int8",
                      self.refused("--cuda-library", LIBRARY, "--compute", "int8"))

    def with_environment(self, values, *args):
        before = dict(os.environ)
        os.environ.update(values)
        try:
            return self.refused("--cuda-library", LIBRARY, *args)
        finally:
            os.environ.clear()
            os.environ.update(before)

    def test_a_machine_without_a_gpu(self):
        """The CLI and the coordinator start; `auto` computes on the CPU."""
        if pathlib.Path("/dev/nvidiactl").exists():
            self.skipTest("this machine has a GPU")
        answer = generate_json(harness.MODELS / "dense-gpu", "--device", "auto", "--threads", 1,
                               "--prompt-ids", "2,5", "--max-tokens", 2)
        self.assertEqual(len(answer["token_ids"]), 2)
        if REAL_LIBRARY.exists():
            self.assertRegex(self.refused("--cuda-library", REAL_LIBRARY),
                             "no GPU to use: the NVIDIA driver is missing|cannot be loaded")

    # -- Doctor, and what is linked.

    def test_doctor(self):
        done = run("doctor", "--cuda-library", LIBRARY)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("SIMT executor as sm_90", done.stdout)
        self.assertIn("reaches the memory of GPU 1, 2, 3", done.stdout)
        report = json.loads(run("doctor", "--json", "--cuda-library", LIBRARY).stdout)
        self.assertEqual(len(report["gpus"]), 4)
        self.assertEqual(report["gpus"][0]["compute_capability"], 90)
        absent = run("doctor", "--cuda-library", "/absent.so")
        self.assertEqual(absent.returncode, 1)
        self.assertIn("/absent.so", absent.stderr)

    @unittest.skipUnless(shutil.which("nm"), "no nm")
    def test_no_cpu_kernel_is_linked(self):
        cpu_kernel = re.compile("Avx2|Avx512|CpuBackend|ThreadTeam|PackedWeight|ComputeWeights")

        def symbols(path):
            listing = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True)
            return {line for line in listing.stdout.splitlines()
                    if re.search(" [tTwW] ", line) and cpu_kernel.search(line)}

        self.assertTrue(symbols(harness.BINARY), "the pattern finds nothing: is it stripped?")
        self.assertEqual(symbols(LIBRARY), set())
        if REAL_LIBRARY.exists():
            self.assertEqual(symbols(REAL_LIBRARY), set())


if __name__ == "__main__":
    harness.main()
