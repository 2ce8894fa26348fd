"""The graphs that open-autoglm-v1 is trained on, from a data folder as docs/training.md lays it out."""

from __future__ import annotations

import csv
import gzip
import re
from pathlib import Path

from vglm.graph.graph import Graph

_MIDDLE = re.compile(r" [-<>] ")
HETIONET = Path("medical/hetionet")


def training_graphs(data: Path) -> list[Graph]:
    """UMLS, WN18RR with names and glosses (training parts) and Hetionet, as far as the folder has them."""
    graphs: list[Graph] = []
    for folder in ("kg/umls", "kg/wn18rr-text"):
        if (data / folder).is_dir():
            graphs.append(Graph.load(data / folder, split="train"))
    if (data / HETIONET / "nodes.tsv").exists():
        graphs.append(hetionet(data / HETIONET))
    return graphs


def hetionet(folder: Path) -> Graph:
    """Hetionet (Himmelstein et al., 2017): `nodes.tsv`, `metaedges.tsv` with the names of relations, `edges-5k.sif.gz`."""
    with (folder / "metaedges.tsv").open(encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t")
        relations = {row["abbreviation"]: _MIDDLE.split(row["metaedge"])[1] for row in rows}
    with (folder / "nodes.tsv").open(encoding="utf-8") as file:
        nodes = {
            row["id"]: {"id": row["id"], "name": row["name"], "type": row["kind"].lower()}
            for row in csv.DictReader(file, delimiter="\t")
        }
    edges = []
    with gzip.open(folder / "edges-5k.sif.gz", "rt", encoding="utf-8") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            edges.append(
                {
                    "source": row["source"],
                    "relation": relations.get(row["metaedge"], row["metaedge"]),
                    "target": row["target"],
                }
            )
    ends = {edge[end] for edge in edges for end in ("source", "target")}
    return Graph.from_dict({"nodes": [nodes[i] for i in ends if i in nodes], "edges": edges})
