"""`lapidary top` in a terminal: draws, follows the window's size, outlives its server, and restores
the screen."""

import fcntl
import http.server
import os
import pty
import re
import signal
import struct
import termios
import threading
import unittest

import harness
from harness import run, wait_until

PAGE = """process_start_time_seconds 1000
lapidary_group_ready{model_name="%s"} 1
lapidary_requests_running_by_class{class="batch"} 4321
"""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.server.page.encode()
        self.send_response(200 if self.path == "/metrics" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *unused):
        pass


class Metrics:
    """A server of one page, on a port of its choice or a given one."""

    def __init__(self, page, port=0):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.page = page
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self):
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
        self.server.server_close()


class Terminal:
    """The command in a terminal of its own; `output` is all it wrote."""

    def __init__(self, *args):
        self.output = ""
        try:
            self.pid, self.master = pty.fork()
        except OSError as why:  # a container without /dev/pts
            raise unittest.SkipTest(f"no pseudo terminal here: {why}")
        if self.pid == 0:
            os.execv(harness.BINARY, [harness.BINARY, *map(str, args)])
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        self.status = None

    def _read(self):
        while True:
            try:
                piece = os.read(self.master, 65536)
            except OSError:  # the other side is closed
                return
            if not piece:
                return
            self.output += piece.decode(errors="replace")

    def resize(self, rows, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text):
        os.write(self.master, text)

    def drawn(self):
        """The lines of the last complete drawing."""
        frames = re.findall(r"\x1b\[H(.*?)\x1b\[J", self.output, re.DOTALL)
        return frames[-1].replace("\x1b[K", "").replace("\r", "").split("\n") if frames else []

    def wait(self):
        def ended():
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            return pid

        wait_until(ended, "top ends")
        self.reader.join()
        return self.status

    def close(self):
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.reader.join()
        os.close(self.master)


class TopTest(unittest.TestCase):
    def watch(self, metrics):
        terminal = Terminal("top", "--metrics-server", f"127.0.0.1:{metrics.port}", "--interval", 0.1)
        self.addCleanup(terminal.close)
        return terminal

    def metrics(self, name, port=0):
        metrics = Metrics(PAGE % name, port)
        self.addCleanup(metrics.close)
        return metrics

    def test_draws_resizes_and_restores_the_terminal(self):
        terminal = self.watch(self.metrics("tiny"))
        terminal.resize(30, 100)
        wait_until(lambda: any("4,321" in line for line in terminal.drawn()), "a table")
        wait_until(lambda: len(terminal.drawn()) > 20, "all of it")
        terminal.resize(6, 30)
        wait_until(lambda: len(terminal.drawn()) == 6 and
                   all(len(line) <= 30 for line in terminal.drawn()), "a smaller one")
        terminal.type(b"\x03")
        self.assertEqual(terminal.wait(), 0)
        self.assertIn("\x1b[?1049h\x1b[?25l", terminal.output)
        self.assertTrue(terminal.output.endswith("\x1b[?25h\x1b[?1049l"), terminal.output[-80:])

    def test_a_server_that_goes_away_and_returns(self):
        metrics = self.metrics("first")
        terminal = self.watch(metrics)
        terminal.resize(40, 120)
        wait_until(lambda: any("first" in line for line in terminal.drawn()), "a table")
        metrics.close()
        wait_until(lambda: terminal.drawn() and "no answer" in terminal.drawn()[0], "the silence")
        self.assertTrue(any("first" in line for line in terminal.drawn()), "the last table stays")
        self.metrics("second", metrics.port)
        wait_until(lambda: any("second" in line for line in terminal.drawn()), "the new table")
        self.assertNotIn("no answer", terminal.drawn()[0])

    def test_it_waits_for_a_server(self):
        with_port = self.metrics("late")
        port = with_port.port
        with_port.close()
        terminal = self.watch(with_port)
        wait_until(lambda: terminal.drawn() and "no answer" in terminal.drawn()[0], "the silence")
        self.metrics("late", port)
        wait_until(lambda: any("late" in line for line in terminal.drawn()), "the table")
        os.kill(terminal.pid, signal.SIGTERM)
        self.assertEqual(terminal.wait(), 0)
        self.assertTrue(terminal.output.endswith("\x1b[?25h\x1b[?1049l"))

    def test_once_says_what_is_wrong(self):
        metrics = self.metrics("gone")
        metrics.server.page = "lapidary_steps_total 5\n"
        address = f"127.0.0.1:{metrics.port}"
        done = run("top", "--once", "--interval", 0, "--metrics-server", address)
        self.assertEqual(done.returncode, 1)
        self.assertIn("not a coordinator's metrics", done.stderr)
        metrics.server.page = "<html>\n"
        done = run("top", "--once", "--interval", 0, "--metrics-server", address)
        self.assertIn("line 1 is no metric", done.stderr)
        metrics.close()
        done = run("top", "--once", "--metrics-server", address)
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn(f"no answer from {address}", done.stderr)
        done = run("top", "--once", "--metrics-server", "nowhere")
        self.assertIn("not HOST:PORT", done.stderr)


if __name__ == "__main__":
    harness.main()
