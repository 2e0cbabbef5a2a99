"""256 requests at once on real weights: nothing lost, nothing different, pages as needed.

    python3 bench/serving/concurrent_requests.py models/gemma-3-270m-q4_k_m.gguf

Standard library only. Serves the model, loads it with `lapidary bench` (every answer asked for again,
alone, and compared), and watches /metrics meanwhile. Prints lost and different requests, mean decode
rows per step, and the most KV pages ever in use of each family beside what the requests need: all
have the same lengths, so at the end each holds ceil((prompt + answer - 1) / 16) global pages, and
sliding pages for the window at its worst alignment, ceil((window - 1) / 16) + 1. Exit status 1 when
a request was lost or different, or pages beyond the need and one step's chunks were used.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = 16


class Watcher(threading.Thread):
    """Reads /metrics again and again and keeps the largest pages in use."""

    def __init__(self, address):
        super().__init__(daemon=True)
        self.url = f"http://{address}/metrics"
        self.peak = {"sliding": 0.0, "global": 0.0}
        self.stop = threading.Event()

    def read(self):
        text = urllib.request.urlopen(self.url, timeout=10).read().decode()
        values = {}
        for name, value in re.findall(r"^(lapidary_\w+(?:\{[^}]*\})?) (\S+)$", text, re.M):
            values[name] = float(value)
        return values

    def run(self):
        while not self.stop.wait(0.02):
            for name, value in self.read().items():
                for family in self.peak:
                    if name.startswith("lapidary_kv_pages_used") and f'family="{family}"' in name:
                        self.peak[family] = max(self.peak[family], value)


def total(values, name):
    return sum(v for key, v in values.items() if re.fullmatch(name + r"(\{.*\})?", key))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--lapidary", default=str(ROOT / "build" / "lapidary"))
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--prompt-tokens", type=int, default=600)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--verify", type=int, help="how many to ask for again, alone; default: all")
    parser.add_argument("--window", type=int, default=512, help="of the model's sliding layers")
    parser.add_argument("--step-tokens", type=int, default=512)
    parser.add_argument("--kv-memory", default="6GiB")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        address_file = pathlib.Path(folder) / "address"
        serve = subprocess.Popen(
            [args.lapidary, "serve", args.model, "--port", "0", "--metrics-port", "0",
             "--address-file", str(address_file), "--max-running", str(args.streams),
             "--max-step-tokens", str(args.step_tokens), "--kv-memory", args.kv_memory,
             "--log-level", "warning"],
            stdout=subprocess.DEVNULL)
        try:
            while not (address_file.exists() and len(address_file.read_text().split()) >= 2):
                if serve.poll() is not None:
                    sys.exit("serve ended while starting")
                threading.Event().wait(0.1)
            grpc, http = address_file.read_text().split()[:2]
            watcher = Watcher(http.removeprefix("http://").split("/")[0])
            watcher.start()
            done = subprocess.run(
                [args.lapidary, "bench", "--server", grpc, "-c", str(args.streams), "-n",
                 str(args.streams), "--prompt-tokens", str(args.prompt_tokens), "--output-tokens",
                 str(args.output_tokens), "--timeout", "3000", "--json"],
                stdout=subprocess.PIPE, text=True)
            loaded, peak = watcher.read(), dict(watcher.peak)
            # The same seed makes the same requests; now each is also asked for alone.
            again = subprocess.run(
                [args.lapidary, "bench", "--server", grpc, "-c", str(args.streams), "-n",
                 str(args.streams), "--prompt-tokens", str(args.prompt_tokens), "--output-tokens",
                 str(args.output_tokens), "--timeout", "3000", "--verify",
                 str(args.streams if args.verify is None else args.verify), "--json"],
                stdout=subprocess.PIPE, text=True)
            watcher.stop.set()
        finally:
            serve.terminate()
            serve.wait()
    first, second = json.loads(done.stdout), json.loads(again.stdout)
    print(json.dumps({"first": first, "second": second}, indent=1))
    held = args.prompt_tokens + args.output_tokens - 1
    needed = {"global": args.streams * -(-held // PAGE),
              "sliding": args.streams * min(-(-held // PAGE), -(-(args.window - 1) // PAGE) + 1)}
    # A step's chunks hold pages beyond the window until the step is done, two of them in flight.
    slack = {"global": 0, "sliding": 2 * (args.step_tokens // PAGE + args.streams)}
    steps, rows = total(loaded, "lapidary_steps_total"), total(loaded, "lapidary_decode_rows_total")
    print(f"{args.streams} requests of {args.prompt_tokens} + {args.output_tokens} tokens: "
          f"{rows / steps:.1f} decode rows per step in the mean of {steps:.0f} steps, "
          f"{total(loaded, 'lapidary_preemptions_total'):.0f} preemptions")
    failed = done.returncode != 0 or again.returncode != 0
    for family, need in needed.items():
        print(f"{family} pages: {peak[family]:.0f} at most in use, {need} needed "
              f"({peak[family] / need:.3f})")
        failed |= peak[family] > need + slack[family]
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
