#!/usr/bin/env python3
"""Puts the same load on `vglm serve` and `vllm serve`, one after the other, and prints goodput side by side.

Each server runs alone. The client is `vglm bench serve`, a process of its own; the load is the same to
the token. See docs/benchmarks.md.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

import prepare

PORT = 8321
START = 600.0  # seconds; vLLM compiles its model first
TARGETS = ("ttft:1000", "tpot:100")


@contextlib.contextmanager
def server(command, env=None):
    """Runs a server until it answers; ends it, and all it started, at the end."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        try:
            began = time.monotonic()
            while not healthy():
                if process.poll() is not None or time.monotonic() - began > START:
                    log.seek(0)
                    raise RuntimeError(f"{command[0]} did not start:\n{log.read()[-1500:]}")
                time.sleep(0.1)
            yield time.monotonic() - began
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def healthy():
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def load(python, *options):
    """Returns the figures of one `vglm bench serve`."""
    command = [
        python,
        "-m",
        "vglm.cli",
        "bench",
        "serve",
        "--base-url",
        f"http://127.0.0.1:{PORT}",
        "--json",
        "-",
    ]
    for target in TARGETS:
        command += ["--goodput", target]
    done = subprocess.run([*map(str, command), *options], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the load generator failed:\n{done.stderr[-1500:]}")
    return json.loads(done.stdout)


def loads(options):
    shape = ["--input-len", str(options.input_len), "--output-len", str(options.output_len)]
    yield "64 at once", [*shape, "--concurrency", "64", "--num-requests", "192", "--warmups", "8"]
    for rate in options.rates.split(","):
        count = str(max(16, int(float(rate) * options.seconds)))
        yield f"{rate}/s", [*shape, "--request-rate", rate, "--num-requests", count, "--warmups", "4"]


def commands(options):
    yield "vglm", [options.python, "-m", "vglm.cli", "serve", "smollm2-135m-instruct", "--port", PORT], None
    if "vllm" in options.engines.split(","):
        python, (model,) = prepare.vllm()
        # not `vllm serve`: the command of the wheel for processors looks for a package of another name
        command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", PORT]
        command += ["--dtype", "bfloat16"]
        command += ["--max-model-len", "4096", "--max-num-seqs", "64", "--no-enable-log-requests"]
        yield "vllm", command, {"VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1"}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", default="vglm,vllm")
    parser.add_argument("--rates", default="1,2,4,8,12", help="requests/s, each for --seconds")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--input-len", type=int, default=256)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--python", default=sys.executable, help="interpreter that has vglm installed")
    parser.add_argument("--out", help="write all figures as JSON")
    options = parser.parse_args()
    rows = []
    for name, command, env in commands(options):
        if name not in options.engines.split(","):
            continue
        with server(command, env) as start:
            print(f"# {name}: ready after {start:.1f} s", file=sys.stderr, flush=True)
            for label, flags in loads(options):
                figures = load(options.python, *flags)
                rows.append({"engine": name, "load": label, "start": start, **figures})
                print_row(name, label, figures)
    if options.out:
        pathlib.Path(options.out).write_text(json.dumps(rows, indent=1))


def print_row(name, label, figures):
    tables = {table["title"].split(",")[0]: table["rows"] for table in figures["tables"]}
    requests, tokens = tables["requests"][0], tables["tokens"][0]
    latency = {row["figure"]: row for row in tables["latency"]}
    print(
        f"{name:5} {label:>11}  goodput {requests['request_goodput']:6.2f}/s of {requests['request_throughput']:6.2f}/s  "
        f"output {tokens['output_throughput']:7.1f} tok/s  "
        + "  ".join(
            f"{f} p50 {latency[f]['p50']:8.1f} p99 {latency[f]['p99']:8.1f} ms" for f in ("TTFT", "TPOT")
        )
        + f"  success {requests['success_rate']:.1%}",
        flush=True,
    )


if __name__ == "__main__":
    main()
