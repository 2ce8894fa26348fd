"""The workloads, made from the text of a real knowledge graph (WN18RR) with a fixed seed."""

import json
import os
import pathlib
import random

# entity2text.txt, train.tsv and dev.tsv of WN18RR with glosses, as published with KG-BERT
DATA = pathlib.Path(os.environ.get("VGLM_WN18RR_TEXT", "wn18rr-text"))


def _nodes():
    text, edges = {}, {}
    for line in (DATA / "entity2text.txt").open(encoding="utf-8"):
        key, _, gloss = line.rstrip("\n").partition("\t")
        text[key] = gloss
    for line in (DATA / "dev.tsv").open(encoding="utf-8"):
        head, relation, tail = line.rstrip("\n").split("\t")[:3]
        edges.setdefault(head, []).append((relation.strip("_").replace("_", " "), tail))
    for line in (DATA / "train.tsv").open(encoding="utf-8"):
        head, relation, tail = line.rstrip("\n").split("\t")[:3]
        edges.setdefault(head, []).append((relation.strip("_").replace("_", " "), tail))
    return text, edges


def _record(key, text, edges):
    gloss = " ".join(text[key].split()[:28])
    links = "; ".join(f"{r} {text[t].split(',')[0]}" for r, t in edges.get(key, [])[:3] if t in text)
    return f"{gloss}. {links}." if links else f"{gloss}."


def build(seed=7):
    rng = random.Random(seed)
    text, edges = _nodes()
    pool = [k for k in sorted(text) if len(text[k].split()) >= 12 and edges.get(k)]
    rng.shuffle(pool)
    records = {k: _record(k, text, edges) for k in pool[:2600]}
    keys = list(records)

    def name(k):
        return text[k].split(",")[0]

    def prompt(tag, ks):
        return (
            f"Case {tag}. The knowledge graph:\n"
            + "\n".join(records[k] for k in ks)
            + f"\nQuestion: what is {name(ks[0])}?\nAnswer:"
        )

    def distinct(n, tag):
        return [prompt(f"{tag}-{i}", rng.sample(keys, 14)) for i in range(n)]

    shared = rng.sample(keys, 14)
    shared_text = "The knowledge graph:\n" + "\n".join(records[k] for k in shared)
    hot = rng.sample(keys, 300)
    weights = [1 / (i + 1) ** 0.8 for i in range(300)]
    overlap = []
    for _i in range(120):
        chosen = []
        while len(chosen) < 24:
            k = rng.choices(hot, weights)[0]
            if k not in chosen:
                chosen.append(k)
        rng.shuffle(chosen)
        question = f"Question: what is {name(chosen[0])}?\nAnswer:"
        overlap.append(
            {
                "question": question,
                "prompt": "The knowledge graph:\n" + "\n".join(records[k] for k in chosen) + "\n" + question,
                "graph": {
                    "nodes": [{"id": k, "name": name(k), "text": records[k]} for k in chosen],
                    "edges": [
                        {"source": h, "relation": r, "target": t}
                        for h in chosen
                        for r, t in edges.get(h, [])
                        if t in chosen
                    ],
                },
            }
        )
    return {
        "startup": {"prompts": ["The answer is"], "max_tokens": 1},
        "prefill": {"prompts": distinct(64, "p"), "max_tokens": 1},
        "single": {"prompts": distinct(2, "s"), "max_tokens": 128, "mode": "single"},
        "batch8": {"prompts": distinct(8, "b"), "max_tokens": 128},
        "batch64": {"prompts": distinct(64, "c"), "max_tokens": 64},
        "shared32": {
            "prompts": [
                f"{shared_text}\nQuestion {i}: what is {name(shared[i % 14])}?\nAnswer:" for i in range(32)
            ],
            "max_tokens": 64,
        },
        "overlap": {"requests": overlap, "max_tokens": 1, "mode": "sequential"},
    }


if __name__ == "__main__":
    print(json.dumps({k: len(v.get("prompts", v.get("requests"))) for k, v in build().items()}))
