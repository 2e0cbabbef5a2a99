"""Bad input is normal input: a readable message for each, and never a crash."""

import json
import os
import pathlib
import shutil
import socket
import struct
import tempfile
import unittest

import harness
from harness import joined, run

MODEL = harness.MODELS / "dense-gpu"


class BadCheckpointTest(unittest.TestCase):
    """Every command that opens a checkpoint says the same about a bad one."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = pathlib.Path(folder.name, "model")
        shutil.copytree(MODEL, self.path)

    def edit_config(self, **changes):
        file = self.path / "config.json"
        config = json.loads(file.read_text())
        for key, value in changes.items():
            (config if key in config else config["text_config"])[key] = value
        file.write_text(json.dumps(config))

    def edit_header(self, old, new):
        """Replaces text in the safetensors header without changing its length."""
        assert len(old) == len(new)
        file = self.path / "model.safetensors"
        data = file.read_bytes()
        end = 8 + struct.unpack("<Q", data[:8])[0]
        assert old in data[:end]
        file.write_bytes(data[:end].replace(old, new) + data[end:])

    def assert_refused(self, path, *words):
        for command in (["inspect", path],
                        ["generate", path, "--prompt-ids", "2,5,7", "--max-tokens", "1", "--json"],
                        ["serve", path, "--port", "0", "--metrics-port", "0"]):
            done = run(*command)
            self.assertEqual(done.returncode, 1, f"{command}: {done.stderr}")
            self.assertNotIn("{", done.stdout)
            for word in words:
                self.assertIn(word, done.stderr, f"of {command[0]}")

    def test_absent_path(self):
        self.assert_refused(self.path / "absent", "absent")

    def test_truncated_safetensors(self):
        file = self.path / "model.safetensors"
        os.truncate(file, file.stat().st_size // 2)
        self.assert_refused(self.path, "model.safetensors")

    def test_safetensors_header_beyond_the_file(self):
        file = self.path / "model.safetensors"
        data = file.read_bytes()
        file.write_bytes(struct.pack("<Q", 1 << 60) + data[8:])
        self.assert_refused(self.path, "model.safetensors")

    def test_empty_safetensors(self):
        (self.path / "model.safetensors").write_bytes(b"")
        self.assert_refused(self.path, "model.safetensors")

    def test_wrong_shape(self):
        self.edit_config(intermediate_size=160)
        self.assert_refused(self.path, "layers.0.mlp.gate_proj.weight", "160", "128")

    def test_missing_and_extra_tensor(self):
        self.edit_header(b"layers.0.mlp.up_proj.weight", b"layers.0.mlp.uq_proj.weight")
        self.assert_refused(self.path, "layers.0.mlp.up_proj.weight", "layers.0.mlp.uq_proj.weight")

    def test_missing_file_of_an_index(self):
        path = self.path.parent / "sharded"
        shutil.copytree(harness.MODELS / "dense-awkward", path)
        (path / "model-00002-of-00004.safetensors").unlink()
        self.assert_refused(path, "model-00002-of-00004.safetensors")

    def test_unknown_model_type(self):
        self.edit_config(model_type="camel")
        self.assert_refused(self.path, "camel")

    def test_config_is_not_json(self):
        (self.path / "config.json").write_text('{"model_type": "gemma4", ')
        self.assert_refused(self.path, "config.json")

    def test_truncated_gguf(self):
        path = self.path.parent / "model.gguf"
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 200, 30) + struct.pack("<Q", 20) + b"gene")
        self.assert_refused(path, "model.gguf")

    def test_not_a_gguf(self):
        path = self.path.parent / "model.gguf"
        path.write_bytes(b"PK\x03\x04" + bytes(1000))
        self.assert_refused(path, "model.gguf")

    def test_real_gguf_cut_short(self):
        real = os.environ.get("LAPIDARY_GEMMA3_GGUF")
        if not real:
            self.skipTest("LAPIDARY_GEMMA3_GGUF is not set")
        path = self.path.parent / "cut.gguf"
        with open(real, "rb") as source:
            path.write_bytes(source.read(40 << 20))
        self.assert_refused(path, "cut.gguf")


class BadRequestTest(unittest.TestCase):
    """What the command line alone can get wrong, and what the server refuses."""

    @classmethod
    def setUpClass(cls):
        cls.server = harness.Server(MODEL, "--compute", "fp32", "--threads", 1, "--kv-memory", "16MiB")
        cls.addClassCleanup(cls.server.close)

    def assert_refused(self, *args, words):
        done = run("generate", "--server", self.server.address, *args, "--json")
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertEqual(done.stdout, "")
        for word in words:
            self.assertIn(word, done.stderr)

    def tearDown(self):
        done = run("generate", "--server", self.server.address, "--prompt-ids", "2,5,7",
                   "--max-tokens", "2", "--json")
        self.assertEqual(done.returncode, 0, f"the server is hurt: {done.stderr}")

    def test_prompt_beyond_the_context(self):
        ids = joined([2] + [7] * 1100)
        self.assert_refused("--prompt-ids", ids, "--max-tokens", 1, words=["1101", "1024"])

    def test_prompt_and_answer_beyond_the_context(self):
        ids = joined([2] + [7] * 999)
        self.assert_refused("--prompt-ids", ids, "--max-tokens", 100, words=["1100", "1024"])

    def test_id_outside_the_vocabulary(self):
        self.assert_refused("--prompt-ids", "2,512", "--max-tokens", 1, words=["512"])

    def test_sampling_out_of_range(self):
        self.assert_refused("--prompt-ids", "2,5", "--top-p", "1.5", words=["top_p"])

    def test_unknown_model_name(self):
        self.assert_refused("--prompt-ids", "2,5", "--model", "dromedary", words=["dromedary"])

    def test_no_server(self):
        with socket.socket() as held:  # bound, not listening
            held.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{held.getsockname()[1]}"
            done = run("generate", "--server", address, "--prompt-ids", "2", "--json")
        self.assertEqual(done.returncode, 1)
        self.assertIn(address, done.stderr)


class BadClusterTest(unittest.TestCase):
    def test_port_in_use(self):
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            held.listen()
            port = held.getsockname()[1]
            done = run("serve", MODEL, "--port", port, "--metrics-port", 0, "--kv-memory", "16MiB")
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertIn(str(port), done.stderr)
            self.assertIn("in use", done.stderr)

    def test_metrics_port_in_use(self):
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            held.listen()
            port = held.getsockname()[1]
            done = run("serve", MODEL, "--port", 0, "--metrics-port", port, "--kv-memory", "16MiB")
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertIn(str(port), done.stderr)

    def test_more_ranks_than_heads(self):
        done = run("serve", MODEL, "--tp", 8, "--port", 0, "--metrics-port", 0)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("4", done.stderr)
        self.assertIn("8", done.stderr)

    def test_rank_that_never_connects(self):
        """The coordinator stays and tells every client who is missing; its log says so once."""
        read_end, write_end = os.pipe()
        with harness.Process("coordinator", MODEL, "--tp", 2, "--port", 0, "--metrics-port", 0,
                           "--kv-memory", "16MiB", "--worker-connect-timeout", 0.5,
                           "--announce-fd", write_end, pass_fds=[write_end]) as coordinator:
            os.close(write_end)
            with os.fdopen(read_end) as announce:
                port, worker_port, _ = announce.readline().split()
            with harness.Process("worker", "--coordinator", f"127.0.0.1:{worker_port}",
                               "--rank", 0):
                harness.wait_until(lambda: "only 1 of 2" in coordinator.stderr(),
                                   "the coordinator says who is missing")
                done = run("generate", "--server", f"127.0.0.1:{port}", "--prompt-ids", "2,5,7",
                           "--max-tokens", "1", "--json")
                self.assertEqual(done.returncode, 1, done.stderr)
                self.assertIn("1 of 2 workers connected", done.stderr)

    def test_worker_without_a_coordinator(self):
        with socket.socket() as held:  # bound, not listening
            held.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{held.getsockname()[1]}"
            done = run("worker", "--coordinator", address, "--rank", 0, "--connect-timeout", 0.5)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn(address, done.stderr)

    def test_not_loopback_needs_insecure(self):
        done = run("serve", MODEL, "--host", "0.0.0.0", "--port", 0, "--metrics-port", 0)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("--insecure", done.stderr)


if __name__ == "__main__":
    harness.main()
