"""`lapidary bench` against our server and against OpenAI-like ones, honest and lying."""

import contextlib
import http.server
import json
import signal
import threading
import unittest

import harness

MODEL = harness.MODELS / "dense-gpu"
SERVE = ("--threads", 1, "--kv-memory", "64MiB")
PACE = 0.02  # seconds between the tokens of a paced server
LOAD = ("--prompt-tokens", "5-30", "--output-tokens", "4-9")


def setUpModule():
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # ours is a server here: a client may hang up


class CompletionHandler(http.server.BaseHTTPRequestHandler):
    """Streams as many words as it is asked for, in chunks cut at awkward places.

    `server.lie` names what it does wrong: see `answer`.
    """

    protocol_version = "HTTP/1.1"

    def log_message(self, *unused):
        pass

    def do_GET(self):
        if self.path != "/v1/models" or self.server.lie == "no models":
            return self.send_error(404)
        self.send_page(200, "application/json", json.dumps({"data": [{"id": "pretend"}]}))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.connections.add(self.client_address)
        lie = self.server.lie
        if lie == "404":
            return self.send_page(404, "text/plain", "no such path here")
        if lie == "no stream":
            return self.send_page(200, "application/json", '{"choices": []}')
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        if self.server.closes:
            self.send_header("Connection", "close")
        self.end_headers()
        text = "".join(f"data: {event}\r\n\r\n" for event in self.events(body, lie))
        # Cuts inside JSON and between CR and LF.
        for start in range(0, len(text), 37):
            piece = text[start:start + 37].encode()
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            if self.server.paced and b"choices" in piece:
                threading.Event().wait(PACE)  # a server that takes its time, not a test that sleeps
        if lie == "cut off":
            self.close_connection = True
            return
        self.wfile.write(b"0\r\n\r\n")
        self.close_connection = self.server.closes

    def events(self, body, lie):
        wanted = body["max_tokens"]
        sent = wanted - 2 if lie in ("short", "short but claims all") else wanted
        for i in range(sent):
            choice = {"index": 0, "text": f" {len(body['prompt']) * (i + 1)}",
                      "finish_reason": "length" if i == sent - 1 else None}
            if lie == "differs alone" and i == 1 and len(self.server.bodies) > 6:
                choice["text"] = " else"
            yield json.dumps({"choices": [choice]})
            if lie == "error" and i == 1:
                yield json.dumps({"error": {"message": "out of memory"}})
        claimed = wanted if lie == "short but claims all" else sent
        yield json.dumps({"choices": [], "usage": {"prompt_tokens": len(body["prompt"]),
                                                   "completion_tokens": claimed}})
        if lie != "no done":
            yield "[DONE]"

    def send_page(self, code, content_type, text):
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


class CompletionServer(http.server.ThreadingHTTPServer):
    def handle_error(self, *unused):
        pass  # a client that has seen enough hangs up


@contextlib.contextmanager
def openai_server(lie="", closes=False, paced=False):
    server = CompletionServer(("127.0.0.1", 0), CompletionHandler)
    server.lie, server.closes, server.paced = lie, closes, paced
    server.lock, server.bodies, server.connections = threading.Lock(), [], set()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def bench_openai(server, *args):
    return harness.run("bench", "--openai", f"http://127.0.0.1:{server.server_address[1]}",
                       "--vocab", 1000, "-c", 3, *LOAD, "--json", *args)


class OpenAiTest(unittest.TestCase):
    def test_an_honest_server(self):
        for closes in (False, True):
            with openai_server(closes=closes) as server:
                done = bench_openai(server, "-n", 12, "--verify", 3)
            self.assertEqual(done.returncode, 0, done.stderr)
            out = json.loads(done.stdout)
            self.assertEqual(out["requests"], {"sent": 12, "good": 12, "failed": 0})
            self.assertEqual(out["verify"], {"checked": 3, "different": 0, "failed": 0})
            self.assertEqual(out["target"]["model"], "pretend")
            bodies = server.bodies[:12]
            self.assertEqual(out["tokens"]["output"], sum(b["max_tokens"] for b in bodies))
            self.assertEqual(out["tokens"]["prompt"], sum(len(b["prompt"]) for b in bodies))
            self.assertTrue(all(b["model"] == "pretend" and b["stream"] for b in bodies))
            self.assertTrue(all(4 <= b["max_tokens"] <= 9 for b in bodies))
            # A kept-alive connection is used again; one that the server closes is not missed.
            self.assertEqual(len(server.connections) > 3, closes)

    def test_times_are_those_of_the_tokens_not_of_the_end(self):
        with openai_server(paced=True) as server:
            done = bench_openai(server, "-n", 3)
        out = json.loads(done.stdout)
        self.assertEqual(done.returncode, 0, done.stderr)
        # In the mean, as a client that is late reads two tokens at once.
        self.assertGreater(out["token_gap_ms"]["mean"], PACE * 1e3 / 2)
        # At least four tokens follow each other, so the first comes long before the end.
        self.assertGreater(out["latency_ms"]["mean"] - out["ttft_ms"]["mean"], PACE * 1e3)

    def test_one_connection_a_request(self):
        with openai_server() as server:
            done = bench_openai(server, "-n", 9, "--no-keep-alive")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(len(server.connections), 9)

    def test_the_same_seed_sends_the_same_requests(self):
        sent = []
        for seed in (1, 1, 2):
            with openai_server() as server:
                self.assertEqual(bench_openai(server, "-n", 6, "--seed", seed).returncode, 0)
            sent.append(sorted((b["prompt"], b["max_tokens"], b["seed"]) for b in server.bodies))
        self.assertEqual(sent[0], sent[1])
        self.assertNotEqual(sent[0], sent[2])

    def test_lies_are_failures_by_name(self):
        for lie, kind in (("short", "too few tokens"), ("short but claims all", "uncounted tokens"),
                          ("cut off", "CONNECTION LOST"), ("no done", "CUT OFF"),
                          ("error", "SERVER ERROR"), ("404", "HTTP 404"),
                          ("no stream", "NOT A STREAM")):
            with self.subTest(lie), openai_server(lie) as server:
                done = bench_openai(server, "-n", 6)
                out = json.loads(done.stdout)
                self.assertEqual(done.returncode, 1)
                self.assertEqual(out["errors"], {kind: 6})
                self.assertEqual(out["requests"], {"sent": 6, "good": 0, "failed": 6})
                self.assertIsNone(out["ttft_ms"])
                self.assertIn(f"6 of 6 requests failed ({kind}", done.stderr)

    def test_an_answer_that_differs_alone(self):
        with openai_server("differs alone") as server:
            done = bench_openai(server, "-n", 6, "--verify", 6)
        self.assertEqual(done.returncode, 1)
        self.assertEqual(json.loads(done.stdout)["verify"]["different"], 6)
        self.assertIn("another text when alone", done.stderr)

    def test_what_is_no_such_server(self):
        with openai_server("no models") as server:
            done = bench_openai(server, "-n", 1)
            self.assertEqual(done.returncode, 1)
            self.assertIn("names no model", done.stderr)
            self.assertEqual(bench_openai(server, "-n", 1, "--model", "m").returncode, 0)
        for url, word in (("https://127.0.0.1:1", "http://HOST:PORT"),
                          ("http://127.0.0.1:1", "no server answers at http://127.0.0.1:1")):
            done = harness.run("bench", "--openai", url, "--vocab", 1000)
            self.assertEqual(done.returncode, 1)
            self.assertIn(word, done.stderr)
            self.assertEqual(done.stdout, "")


class LapidaryTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = harness.Server(MODEL, *SERVE)

    @classmethod
    def tearDownClass(cls):
        cls.server.close()

    def bench(self, *args, load=LOAD):
        return harness.run("bench", "--server", self.server.address, *load, *args)

    def test_closed_loop(self):
        done = self.bench("-c", 8, "-n", 40, "--verify", 5, "--warmup", 4, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        out = json.loads(done.stdout)
        self.assertEqual(out["requests"], {"sent": 40, "good": 40, "failed": 0})
        self.assertEqual(out["verify"], {"checked": 5, "different": 0, "failed": 0})
        self.assertEqual(out["target"], {"kind": "lapidary", "address": self.server.address,
                                         "model": "dense-gpu"})
        self.assertEqual(out["tokens"]["counted"], "by the server")
        self.assertEqual(out["ttft_ms"]["count"], 40)
        self.assertEqual(out["token_gap_ms"]["count"], out["tokens"]["output"] - 40)
        for name in ("ttft_ms", "token_gap_ms", "time_per_token_ms", "latency_ms"):
            values = [out[name][key] for key in ("min", "p50", "p90", "p99", "max")]
            self.assertEqual(values, sorted(values), name)
        self.assertLessEqual(out["latency_ms"]["max"], out["duration_s"] * 1e3 + 1e-3)

    def test_poisson_with_sampling(self):
        done = self.bench("--rate", 100, "-n", 30, "--temperature", 0.9, "--top-k", 20, "--top-p",
                          0.9, "--verify", 5, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        out = json.loads(done.stdout)
        self.assertEqual(out["workload"]["arrivals"], "poisson")
        self.assertEqual(out["requests"]["good"], 30)
        self.assertEqual(out["verify"]["different"], 0)

    def test_the_table(self):
        done = self.bench("-c", 2, "-d", 0.2, "--shared-prefix-tokens", 20, "--skip-text",
                          "--connections", 2, "--priority", "batch", "--tenant", "a")
        self.assertEqual(done.returncode, 0, done.stderr)
        for word in ("first token", "token gap", "latency", " 0 failed", "shared prefixes of 20"):
            self.assertIn(word, done.stdout)
        self.assertEqual(done.stderr, "")  # no bar where there is no terminal

    def test_text_for_prompts(self):
        done = self.bench("-c", 2, "-n", 4, "--text", harness.ROOT / "README.md", "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(json.loads(done.stdout)["workload"]["prompts"], "text")

    def test_mistakes(self):
        for args, word in ((("--model", "other"), "other"),
                           (("--prompt-tokens", "9-3"), "not a length: '9-3'"),
                           (("--prompt-tokens", "99999"), "holds 1024"),
                           (("--text", "/no/such/file"), "cannot read the text")):
            done = self.bench("-n", 1, *args, load=())
            self.assertEqual(done.returncode, 1, args)
            self.assertIn(word, done.stderr)
        self.assertEqual(harness.run("bench").returncode, 1)
        self.assertEqual(self.bench("--rate", 1, "-c", 4).returncode, 2)

    def test_a_request_that_takes_too_long_has_failed(self):
        done = self.bench("-c", 1, "-n", 2, "--timeout", 0.001, "--json",
                          load=("--prompt-tokens", 8, "--output-tokens", 500))
        self.assertEqual(done.returncode, 1)
        self.assertEqual(json.loads(done.stdout)["errors"], {"DEADLINE_EXCEEDED": 2})

    def test_an_interrupt_cancels_and_reports(self):
        with harness.Process("bench", "--server", self.server.address, "-c", 4, "-d", 1000, *LOAD,
                             "--json") as bench:
            harness.wait_until(lambda: self.server.metric("lapidary_requests_running") > 0,
                               "the load arrives")
            bench.signal(signal.SIGINT)
            self.assertEqual(bench.wait(), 130)
            out = json.loads(bench.process.stdout.read())
        self.assertFalse(out["complete"])
        self.assertEqual(out["requests"]["failed"], 0)


class OwnServerTest(unittest.TestCase):
    def test_a_model_path_starts_a_server(self):
        done = harness.run("bench", MODEL, *SERVE, "-c", 4, "-n", 8, *LOAD, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(json.loads(done.stdout)["requests"]["good"], 8)

    def test_a_server_that_dies_ends_the_run(self):
        with harness.Server(MODEL, *SERVE) as server:
            with harness.Process("bench", "--server", server.address, "-c", 4, "-d", 1000, *LOAD,
                                 "--json") as bench:
                harness.wait_until(lambda: server.metric("lapidary_requests_running") > 0,
                                   "the load arrives")
                for pid in harness.children_of(server.pid) + [server.pid]:
                    with contextlib.suppress(ProcessLookupError):
                        harness.os.kill(pid, signal.SIGKILL)
                self.assertEqual(bench.wait(), 1)
                out = json.loads(bench.process.stdout.read())
            self.assertEqual(out["errors"].keys(), {"UNAVAILABLE"})
            self.assertGreaterEqual(out["requests"]["failed"], 32)


if __name__ == "__main__":
    harness.main()
