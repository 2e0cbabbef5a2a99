#!/usr/bin/env python3
"""What everything but the arithmetic costs: `lapidary serve --device null` under load.

The server's processes share one CPU, the client (`lapidary bench`) has another. Each run is one row:
tokens per second by the clock, and the processor time per token of each process, which tells more on
a machine that others use too. Every answer is checked for its length. Standard library only.

  bench/null_device.py MODEL [--streams 1,64,256] [--step-us 0] [--tokens 1000] [--ranks 1]

MODEL needs a config.json and a tokenizer.json, or is a GGUF file; its weights are not read.
"""
import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

COLUMNS = (
    "streams", "step us", "tokens/s", "tokens per message", "first token p50 ms", "token gap p50 / p99 ms",
    "coordinator us", "workers us", "client us", "one server CPU holds", "load average")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--binary", default="build/release/cli/lapidary")
    parser.add_argument("--streams", default="1,64,256", help="comma-separated; each is a run")
    parser.add_argument("--step-us", default="0", help="what the device takes for a step; likewise")
    parser.add_argument("--tokens", type=int, default=1000, help="of each answer")
    parser.add_argument("--rounds", type=int, default=4, help="answers of each stream")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--server-cpu", type=int, default=0)
    parser.add_argument("--client-cpu", type=int, default=1)
    parser.add_argument("--nice", type=int, default=0, help="of all processes; below 0 needs rights")
    return parser.parse_args()


def on_cpu(cpu, nice):
    def prepare():
        os.sched_setaffinity(0, {cpu})
        os.nice(nice)
    return prepare


def children(pid):
    text = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def processor_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_coordinator(pid):
    return b"coordinator" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:2]


def run(options, streams, step_us):
    with tempfile.TemporaryDirectory() as folder:
        address_file = pathlib.Path(folder) / "address"
        server = subprocess.Popen(
            [options.binary, "serve", options.model, "--device", "null", "--null-step-us", str(step_us),
             "--tp", str(options.ranks), "--port", "0", "--metrics-port", "0",
             "--max-running", str(streams), "--max-step-tokens", str(max(512, 2 * streams)),
             "--max-context", "8192", "--kv-memory", "64GiB", "--log-level", "warning",
             "--address-file", str(address_file)],
            preexec_fn=on_cpu(options.server_cpu, options.nice), stderr=subprocess.DEVNULL)
        try:
            while not address_file.exists() or len(address_file.read_text().split()) < 2:
                if server.poll() is not None:
                    sys.exit("the server ended while starting")
                time.sleep(0.05)
            address = address_file.read_text().split()[0]
            pids = children(server.pid)
            before = {pid: processor_seconds(pid) for pid in pids}
            client = subprocess.run(
                [options.binary, "bench", "--server", address, "-c", str(streams),
                 "-n", str(streams * options.rounds), "--prompt-tokens", "16",
                 "--output-tokens", str(options.tokens), "--json"],
                preexec_fn=on_cpu(options.client_cpu, options.nice), stdout=subprocess.PIPE, check=False)
            used = {pid: processor_seconds(pid) - before[pid] for pid in pids}
            coordinator = sum(used[pid] for pid in pids if is_coordinator(pid))
            workers = sum(used.values()) - coordinator
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()
    result = json.loads(client.stdout)
    if client.returncode != 0 or result["requests"]["failed"] > 0:
        sys.exit(f"{result['requests']['failed']} answers were wrong: {result['errors']}")
    tokens = result["tokens"]["output"]
    each = 1e6 / tokens  # seconds to microseconds per token
    gap = result["token_gap_ms"]
    return (streams, step_us, f"{result['throughput']['output_tokens_per_s']:,.0f}",
            f"{tokens / result['tokens']['messages']:.2f}", f"{result['ttft_ms']['p50']:.1f}",
            f"{gap['p50']:.2f} / {gap['p99']:.1f}", f"{coordinator * each:.2f}", f"{workers * each:.2f}",
            f"{result['client_cpu_s'] * each:.2f}", f"{tokens / (coordinator + workers):,.0f}",
            f"{os.getloadavg()[0]:.1f}")


def main():
    options = arguments()
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for step_us in options.step_us.split(","):
        for streams in options.streams.split(","):
            row = run(options, int(streams), int(step_us))
            print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)


if __name__ == "__main__":
    main()
