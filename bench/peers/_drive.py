"""What every driver shares: time the workloads with one `generate(prompts, max_tokens, graphs)` callable."""

import json
import resource
import sys
import time

START = time.perf_counter()


def drive(engine, make, note=""):
    """make() -> generate(prompts, max_tokens, graphs=None) -> (prompt tokens, output tokens); prints a JSON line a workload."""
    work = json.load(open(sys.argv[1]))

    def say(name, **figures):
        print("RESULT " + json.dumps({"engine": engine, "workload": name, **figures}), flush=True)

    generate = make()
    generate(["The answer is"], 1)
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    say("startup", seconds=time.perf_counter() - START, rss_mb=rss, note=note)
    generate(["Warm up the engine with a short prompt."] * 4, 8)
    for name, w in work.items():
        if name == "startup":
            continue
        try:
            if w.get("mode") == "single":
                t = time.perf_counter()
                p, _ = generate(w["prompts"][:1], 1)
                first = time.perf_counter() - t
                t = time.perf_counter()
                p, o = generate(w["prompts"][1:], w["max_tokens"])
                full = time.perf_counter() - t
                say(
                    name,
                    seconds=full,
                    prefill_s=first,
                    prompt_tokens=p,
                    output_tokens=o,
                    figure=(o - 1) / max(full - first, 1e-9),
                )
            elif w.get("mode") == "sequential":
                times = []
                for r in w["requests"]:
                    t = time.perf_counter()
                    if engine == "vglm":
                        generate([r["question"]], w["max_tokens"], [r["graph"]])
                    else:
                        generate([r["prompt"]], w["max_tokens"])
                    times.append(time.perf_counter() - t)
                tail = sorted(times[len(times) // 2 :])
                say(
                    name,
                    seconds=sum(times),
                    figure=1000 * sum(tail) / len(tail),
                    p95_ms=1000 * tail[int(len(tail) * 0.95)],
                )
            else:
                t = time.perf_counter()
                p, o = generate(w["prompts"], w["max_tokens"])
                s = time.perf_counter() - t
                say(
                    name,
                    seconds=s,
                    prompt_tokens=p,
                    output_tokens=o,
                    figure=(p if w["max_tokens"] == 1 else o) / s,
                )
        except Exception as e:  # a peer's failure is a result too
            say(name, error=f"{type(e).__name__}: {e}"[:300])
