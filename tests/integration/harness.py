"""What the integration tests share: running the `lapidary` binary, and watching its processes.

Standard library only. Nothing sleeps for a fixed time: `wait_until` polls a condition to a deadline.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("LAPIDARY_BINARY", str(ROOT / "build" / "lapidary"))
MODELS = ROOT / "tests" / "golden" / "models"
DEADLINE = float(os.environ.get("LAPIDARY_TEST_DEADLINE", "60"))  # seconds for anything to happen


def wait_until(condition, what, deadline=DEADLINE):
    """The condition's first true value; fails the test after the deadline."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline:.0f} s: {what}")
        time.sleep(0.01)


def golden(name):
    return json.loads((MODELS / name / "golden.json").read_text())


def joined(ids):
    return ",".join(map(str, ids))


# What the processes below a command say of bugs: their exit codes may get lost on the way up.
BUGS = re.compile(r"ERROR: \w+Sanitizer|WARNING: ThreadSanitizer|runtime error:|"
                  r"Potential Mutex deadlock|terminate called|was killed by signal (?!9\b)")


def check_for_bugs(stderr):
    """Fails the test if a process has met a bug of its own."""
    if BUGS.search(stderr):
        raise AssertionError(f"a process reports a bug:\n{stderr}")


def run(*args, deadline=DEADLINE):
    """Runs a subcommand to its end."""
    done = subprocess.run([BINARY, *map(str, args)], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=deadline)
    check_for_bugs(done.stderr)
    return done


def generate_json(*args):
    """`generate ... --json`: the object on stdout, which must hold nothing else."""
    done = run("generate", *args, "--json")
    if done.returncode != 0:
        raise AssertionError(f"generate {args} exited with {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)


def children_of(pid):
    """Process ids of everything below `pid`."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = pathlib.Path("/proc", entry, "stat").read_text()
            except OSError:
                continue
            parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    found, todo = [], [pid]
    while todo:
        parent = todo.pop()
        below = [child for child, of in parents.items() if of == parent]
        found += below
        todo += below
    return found


def alive(pid):
    """Whether the process runs; a zombie does not."""
    try:
        stat = pathlib.Path("/proc", str(pid), "stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def command_line(pid):
    try:
        return pathlib.Path("/proc", str(pid), "cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


class Process:
    """A long-running subcommand with its output kept."""

    def __init__(self, *args, pass_fds=()):
        self.errors = tempfile.TemporaryFile(mode="w+")
        self.process = subprocess.Popen([BINARY, *map(str, args)], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=self.errors, text=True,
                                        pass_fds=pass_fds)
        self.pid = self.process.pid

    def stderr(self):
        self.errors.seek(0)
        return self.errors.read()

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, deadline=DEADLINE):
        try:
            return self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {deadline:.0f} s:\n{self.stderr()}") from None

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        stderr = self.stderr()
        self.errors.close()
        check_for_bugs(stderr)

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.close()


class Server(Process):
    """`lapidary serve`, ready."""

    def __init__(self, path, *args):
        self.folder = tempfile.TemporaryDirectory()
        address_file = pathlib.Path(self.folder.name, "address")
        super().__init__("serve", path, "--port", 0, "--metrics-port", 0, "--address-file",
                         address_file, *args)

        def ready():
            if self.process.poll() is not None:
                raise AssertionError(f"serve ended with {self.process.returncode}:\n{self.stderr()}")
            lines = address_file.read_text().splitlines() if address_file.exists() else []
            return lines if len(lines) == 2 else None

        try:
            self.address, self.metrics_address = wait_until(ready, "serve becomes ready")
        except BaseException:
            self.close()
            raise

    def metric(self, name):
        """Sum of a series over its labels."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=10) as page:
            text = page.read().decode()
        values = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        assert values, f"{name} is missing from /metrics"
        return sum(map(float, values))

    def rank(self, rank):
        """Process id of a rank's worker."""
        for pid in children_of(self.pid):
            words = command_line(pid)
            if "worker" in words and words[words.index("--rank") + 1] == str(rank):
                return pid
        raise AssertionError(f"no process of rank {rank} below {self.pid}")

    def close(self):
        super().close()
        self.folder.cleanup()


class Stream(Process):
    """`lapidary generate --server`, streaming text to us as it comes."""

    def __init__(self, server, *args):
        super().__init__("generate", "--server", server.address, *args)
        self.text = ""
        self.first = threading.Event()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self):
        while piece := self.process.stdout.read(1):
            self.text += piece
            self.first.set()

    def await_first(self):
        if not self.first.wait(DEADLINE):
            raise AssertionError(f"no text within {DEADLINE:.0f} s: {self.stderr()}")

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.reader.join()
        super().close()


def main():
    if not os.access(BINARY, os.X_OK):
        sys.exit(f"{BINARY} is missing: make build, or set LAPIDARY_BINARY")
    unittest.main(verbosity=2)
