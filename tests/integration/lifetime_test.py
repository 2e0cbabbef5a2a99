"""Processes: a killed rank, a killed parent, draining, and cancellation."""

import signal
import unittest

import harness
from harness import Server, Stream, alive, children_of, golden, joined, run, wait_until

MODEL = harness.MODELS / "dense-gpu"
OPTIONS = ("--compute", "fp32", "--threads", 1, "--kv-memory", "64MiB")
LONG = ("--prompt-ids", "2,5,7", "--max-tokens", 1000, "--temperature", 0, "--ignore-eos")


class LifetimeTest(unittest.TestCase):
    def serve(self, *args):
        server = Server(MODEL, *OPTIONS, *args)
        self.addCleanup(server.close)
        return server

    def stream(self, server, *args):
        stream = Stream(server, *args)
        self.addCleanup(stream.close)
        return stream

    def assert_gone(self, pids):
        wait_until(lambda: not any(map(alive, pids)), f"end of processes {pids}", deadline=20)

    def kill_rank(self, rank):
        server = self.serve("--tp", 2)
        everyone = children_of(server.pid)
        self.assertEqual(len(everyone), 3)  # the coordinator and two ranks
        stream = self.stream(server, *LONG)
        stream.await_first()
        harness.os.kill(server.rank(rank), signal.SIGKILL)
        self.assertEqual(stream.wait(), 1, stream.stderr())
        self.assertRegex(stream.stderr(), f"rank {rank}|group|worker")
        self.assertEqual(server.wait(), 1)
        self.assertIn(f"rank {rank}", server.stderr())
        self.assert_gone(everyone)

    def test_kill_of_the_leader_in_mid_stream(self):
        self.kill_rank(0)

    def test_kill_of_another_rank_in_mid_stream(self):
        self.kill_rank(1)

    def test_no_process_survives_its_parent(self):
        for number in (signal.SIGKILL, signal.SIGTERM):
            server = self.serve("--tp", 2)
            everyone = children_of(server.pid)
            self.assertEqual(len(everyone), 3)
            server.signal(number)
            server.wait()
            self.assert_gone(everyone)

    def test_killed_in_mid_stream(self):
        server = self.serve("--tp", 2)
        everyone = children_of(server.pid)
        stream = self.stream(server, *LONG)
        stream.await_first()
        server.signal(signal.SIGKILL)
        server.wait()
        self.assert_gone(everyone)
        self.assertEqual(stream.wait(), 1)

    def test_ctrl_c_drains(self):
        server = self.serve("--tp", 2)
        expected = run("generate", "--server", server.address, *LONG)
        self.assertEqual(expected.returncode, 0, expected.stderr)
        stream = self.stream(server, *LONG)
        stream.await_first()
        server.signal(signal.SIGINT)
        self.assertEqual(stream.wait(), 0, stream.stderr())
        stream.reader.join()
        self.assertEqual(stream.text, expected.stdout)
        self.assertEqual(server.wait(), 0, server.stderr())

    def test_a_rank_killed_while_draining(self):
        server = self.serve("--tp", 2, "--device", "null", "--null-step-us", 5000)
        stream = self.stream(server, *LONG)
        stream.await_first()
        victim = server.rank(1)
        server.signal(signal.SIGINT)
        wait_until(lambda: "Draining" in server.stderr(), "the server drains")
        harness.os.kill(victim, signal.SIGKILL)
        self.assertEqual(stream.wait(), 1, stream.stderr())
        self.assertEqual(server.wait(), 1, server.stderr())
        self.assertIn(f"rank 1 (process {victim}) was killed by signal 9", server.stderr())

    def test_a_dropped_stream_frees_its_pages(self):
        # Steps of 5 ms: the model itself would be through before a busy machine has looked.
        server = self.serve("--device", "null", "--null-step-us", 5000)
        stream = self.stream(server, *LONG)
        stream.await_first()
        wait_until(lambda: server.metric("lapidary_requests_running") > 0, "the engine reports it")
        stream.signal(signal.SIGKILL)
        stream.wait()
        wait_until(lambda: server.metric("lapidary_requests_running") == 0, "the request ends")
        wait_until(lambda: server.metric("lapidary_kv_usage_ratio") == 0, "its pages are free")
        self.assertLess(server.metric("lapidary_generation_tokens_total"), 1000)

    def test_generate_leaves_nothing_behind(self):
        with harness.Process("generate", MODEL, *OPTIONS, "--tp", 2, *LONG) as command:
            pids = wait_until(lambda: len(p := children_of(command.pid)) == 3 and p, "three children")
            command.signal(signal.SIGKILL)
            command.wait()
            self.assert_gone(pids)


if __name__ == "__main__":
    harness.main()
