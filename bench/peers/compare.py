#!/usr/bin/env python3
"""Runs the workloads on vGLM and its peers, one after the other, and prints figures and ratios. See docs/benchmarks.md."""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import prepare
import workloads

HERE = pathlib.Path(__file__).resolve().parent
UNIT = {
    "startup": "s",
    "prefill": "prompt tok/s",
    "single": "tok/s",
    "batch8": "tok/s",
    "batch64": "tok/s",
    "shared32": "tok/s",
    "overlap": "ms TTFT",
}
LESS_IS_MORE = {"startup", "overlap"}


def run(engine, python, args, work):
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as f:
        json.dump(work, f)
    p = subprocess.run(
        [str(python), str(HERE / f"drive_{engine}.py"), f.name, *map(str, args)],
        cwd=HERE,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    os.unlink(f.name)
    rows = [json.loads(line[7:]) for line in p.stdout.splitlines() if line.startswith("RESULT ")]
    if p.returncode:
        rows.append(
            {"engine": engine, "workload": "process", "error": f"exit {p.returncode}: {p.stderr[-600:]}"}
        )
    return rows


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--engines", default="vglm,openvino")
    a.add_argument("--workloads", default="all")
    a.add_argument("--python", help="interpreter that has vglm installed")
    a.add_argument("--out", help="write all results as JSON")
    o = a.parse_args()
    work = workloads.build()
    if o.workloads != "all":
        work = {k: v for k, v in work.items() if k in o.workloads.split(",")}
    rows = []
    for engine in o.engines.split(","):
        print(f"# {engine}", file=sys.stderr, flush=True)
        try:
            if engine == "vglm":
                local = pathlib.Path(".venv/bin/python")
                python, args = o.python or (local.absolute() if local.exists() else sys.executable), []
            else:
                python, args = getattr(prepare, engine)()
            rows += run(engine, python, args, work)
        except Exception as e:
            rows.append({"engine": engine, "workload": "process", "error": str(e)[-300:]})
    if o.out:
        json.dump(rows, open(o.out, "w"), indent=1)
    table = {(r["workload"], r["engine"]): r for r in rows}
    engines = o.engines.split(",")
    print(f"{'workload':<10}" + "".join(f"{e:>14}" for e in engines) + f"{'vglm / best peer':>20}  unit")
    for w in ["startup"] + [k for k in work if k != "startup"]:
        figures = {
            e: (lambda r: r.get("seconds") if w == "startup" else r.get("figure"))(table.get((w, e), {}))
            for e in engines
        }
        peers = [v for e, v in figures.items() if e != "vglm" and v]
        ratio = ""
        if figures.get("vglm") and peers:
            ratio = f"{(min(peers) / figures['vglm']) if w in LESS_IS_MORE else figures['vglm'] / max(peers):.2f}x"
        print(
            f"{w:<10}"
            + "".join(f"{(f'{v:.1f}' if v else '-'):>14}" for v in figures.values())
            + f"{ratio:>20}  {UNIT[w]}"
        )
    for r in rows:
        if "error" in r:
            print(f"! {r['engine']} {r['workload']}: {r['error']}")
        elif r.get("note"):
            print(f"# {r['engine']}: {r['note']}; resident {r['rss_mb']:.0f} MB after start")


if __name__ == "__main__":
    main()
