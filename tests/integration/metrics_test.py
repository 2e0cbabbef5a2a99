"""Metrics of a live server: promtool's lint, a real Prometheus that scrapes it, and docs/metrics.md."""

import json
import pathlib
import re
import shutil
import socket
import subprocess
import tempfile
import unittest
import urllib.error
import urllib.parse
import urllib.request

import harness
from harness import Server, generate_json, run, wait_until

MODEL = harness.MODELS / "dense-gpu"
OPTIONS = ("--compute", "fp32", "--threads", 1, "--kv-memory", "64MiB")


def page_of(address):
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as page:
        return page.read().decode()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Prometheus:
    """A Prometheus of our own that scrapes one address five times a second."""

    def __init__(self, target):
        self.folder = tempfile.TemporaryDirectory()
        config = pathlib.Path(self.folder.name, "prometheus.yml")
        config.write_text(json.dumps({
            "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"},
            "scrape_configs": [{"job_name": "lapidary",
                                "static_configs": [{"targets": [target]}]}]}))
        self.address = f"127.0.0.1:{free_port()}"
        self.log = open(pathlib.Path(self.folder.name, "log"), "w+")
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--web.listen-address={self.address}",
             f"--storage.tsdb.path={self.folder.name}/data"],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT)

    def query(self, expression):
        """The values of an instant query; none while Prometheus starts."""
        url = f"http://{self.address}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 503:
                return []
            raise AssertionError(f"{expression}: {error.read().decode()}") from None
        except OSError:
            return []
        return [float(series["value"][1]) for series in found["data"]["result"]]

    def close(self):
        self.process.kill()
        self.process.wait()
        self.log.close()
        self.folder.cleanup()


class MetricsTest(unittest.TestCase):
    def serve(self, *args):
        server = Server(MODEL, *OPTIONS, *args)
        self.addCleanup(server.close)
        return server

    def ask(self, server, *more):
        return generate_json("--server", server.address, "--prompt-ids", "2,5,7", "--max-tokens", 20,
                             "--temperature", 0, "--ignore-eos", *more)

    def test_the_page_has_no_nan_and_promtool_finds_nothing(self):
        server = self.serve()
        self.ask(server)
        page = page_of(server.metrics_address)
        self.assertNotRegex(page, r"(?i)\bnan\b")
        if shutil.which("promtool") is None:
            self.skipTest("promtool is not installed (Debian: prometheus)")
        ours = [line for line in page.splitlines() if "vllm:" not in line]
        # Aliases are vLLM's to name; what they hold is parsed by the Prometheus below.
        done = subprocess.run(["promtool", "check", "metrics"], input="\n".join(ours) + "\n",
                              capture_output=True, text=True, timeout=60)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))

    def test_the_documentation_lists_what_is_served(self):
        server = self.serve("--tp", 2)
        served = set(re.findall(r"^# TYPE (\S+) ", page_of(server.metrics_address), re.MULTILINE))
        text = (harness.ROOT / "docs" / "metrics.md").read_text()
        rows = re.findall(r"^\| `([^`]+)` \| \w+ \| [^|]*\| ([^|]*) \|", text, re.MULTILINE)
        self.assertEqual(served, {name for name, on in rows if "coordinator" in on or on == "all"})

    def test_a_real_prometheus(self):
        if shutil.which("prometheus") is None:
            self.skipTest("prometheus is not installed")
        server = self.serve()
        prometheus = Prometheus(server.metrics_address)
        self.addCleanup(prometheus.close)
        wait_until(lambda: prometheus.query("up") == [1], "Prometheus scrapes the server")
        wait_until(lambda: prometheus.query("lapidary_generation_tokens_total") == [0],
                   "series exist before the first request")
        for priority in ("interactive", "batch"):
            self.ask(server, "--priority", priority, "--n", 2)

        def becomes(expression, condition):
            wait_until(lambda: any(map(condition, prometheus.query(expression))),
                       f"{expression} as expected, not {prometheus.query(expression)}")

        becomes("lapidary_generation_tokens_total", lambda v: v == 80)
        becomes("vllm:generation_tokens_total", lambda v: v == 80)
        becomes("sum(increase(lapidary_steps_total[1m]))", lambda v: v > 0)
        becomes("lapidary_decode_rows_total", lambda v: v == 76)  # all but four first tokens
        becomes("lapidary_requests_total{finish='length'}", lambda v: v == 2)
        for name in ("lapidary_queue_seconds", "lapidary_prefill_seconds", "lapidary_decode_seconds",
                     "lapidary_inference_seconds", "lapidary_output_token_seconds",
                     "lapidary_request_params_n", "vllm:request_params_max_tokens",
                     "vllm:e2e_request_latency_seconds"):
            becomes(f"{name}_count", lambda v: v == 2)
        becomes("vllm:iteration_tokens_total_sum", lambda v: v >= 76)
        becomes("lapidary_step_seconds_sum{part='forward'}", lambda v: v > 0)
        becomes("histogram_quantile(0.99, sum by (le) "
                "(rate(lapidary_time_to_first_token_seconds_bucket[1m])))", lambda v: 0 < v < 60)
        becomes("histogram_quantile(0.5, sum by (le) "
                "(rate(vllm:inter_token_latency_seconds_bucket[1m])))", lambda v: 0 < v < 60)
        becomes("sum(lapidary_kv_pages) by (model_name)", lambda v: v > 0)
        # What has ended holds nothing.
        for name in ("lapidary_requests_running", "lapidary_requests_waiting",
                     "lapidary_requests_paused", "sum(lapidary_kv_pages_used)",
                     "vllm:kv_cache_usage_perc", "lapidary_streams_open"):
            becomes(name, lambda v: v == 0)

    def test_top_prints_one_table(self):
        server = self.serve()
        self.ask(server)
        done = run("top", "--metrics-server", server.metrics_address, "--interval", 0)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertRegex(done.stdout, r"^dense-gpu   ready   epoch 1 ")
        self.assertRegex(done.stdout, r"(?m)^  first token +[\d.]+ (us|ms|s) ")
        self.assertRegex(done.stdout, r"(?m)^  sliding +\[[#:.]+\] 0 \+ \d+ of [\d,]+ ")
        self.assertNotIn("\x1b", done.stdout)


if __name__ == "__main__":
    harness.main()
