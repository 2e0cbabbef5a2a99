"""`lapidary debug` finds the first layer that differs from a recorded run."""

import json
import pathlib
import shutil
import struct
import tempfile
import unittest

import harness
from harness import golden, joined, run

MODEL = harness.MODELS / "dense-gpu"


class DebugTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.recording = self.folder / "run.bin"
        ids = joined(golden("dense-gpu")["cases"][1]["prompt"])
        done = run("debug", "record", MODEL, self.recording, "--prompt-ids", ids)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_the_same_model_agrees(self):
        done = run("debug", "compare", MODEL, self.recording)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("agree", done.stdout)

    def test_a_changed_weight_is_found(self):
        path = self.folder / "model"
        shutil.copytree(MODEL, path)
        file = path / "model.safetensors"
        data = bytearray(file.read_bytes())
        header_bytes = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8:8 + header_bytes])
        begin, end = header["model.language_model.layers.3.mlp.down_proj.weight"]["data_offsets"]
        data[8 + header_bytes + begin:8 + header_bytes + end] = bytes(end - begin)
        file.write_bytes(data)
        done = run("debug", "compare", path, self.recording)
        self.assertNotEqual(done.returncode, 0, done.stdout)
        said = done.stdout + done.stderr
        self.assertIn("The runs part at layers.3.mlp", said)

    def test_a_damaged_recording_is_refused(self):
        self.recording.write_bytes(self.recording.read_bytes()[:1000])
        done = run("debug", "compare", MODEL, self.recording)
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertIn("run.bin", done.stderr)


if __name__ == "__main__":
    harness.main()
