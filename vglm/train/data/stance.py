"""ExplaGraphs (Saha et al., 2021): does an argument support or counter a belief, given a graph of commonsense that explains it.

A line of the file: belief, argument, "support" or "counter", and the graph as (source; relation; target)(...)...
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from vglm.errors import GraphError
from vglm.graph.graph import Graph
from vglm.tasks.classification import label_question
from vglm.train.samples import Sample, Turn

LABELS = ("support", "counter")
HELD_OUT = 10  # one belief in ten is for the test
QUESTION = "Belief: {belief}\nArgument: {argument}\nDoes the argument support or counter the belief?"
_TRIPLE = re.compile(r"\(([^()]*);([^()]*);([^()]*)\)")


@dataclass(frozen=True, slots=True)
class Stance:
    """One case; `label` is one of LABELS."""

    belief: str
    argument: str
    label: str
    graph: Graph

    @property
    def question(self) -> str:
        """What is asked of the graph."""
        return QUESTION.format(belief=self.belief, argument=self.argument)


def read_stances(path: Path) -> list[Stance]:
    """The cases of a file. Raises GraphError that names the line."""
    found: list[Stance] = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        fields = line.split("\t")
        if len(fields) != 4 or fields[2] not in LABELS:
            raise GraphError(
                f"{path}, line {number}: expected belief, argument, support or counter, and a graph"
            )
        found.append(Stance(fields[0].strip(), fields[1].strip(), fields[2], _graph(fields[3])))
    return found


def is_held_out(case: Stance) -> bool:
    """Whether a case is for the test: all cases of one belief are, or none, so that no belief is known from training."""
    digest = blake2b(case.belief.lower().encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % HELD_OUT == 0


def stance_sample(case: Stance, rng: random.Random) -> Sample:
    """A case to learn from, with its labels in either order."""
    labels = rng.sample(LABELS, 2)
    return Sample(
        "stance", (Turn(label_question(case.question, labels), case.label, named=False),), case.graph
    )


def _graph(text: str) -> Graph:
    triples = [tuple(part.strip() for part in match) for match in _TRIPLE.findall(text)]
    names = dict.fromkeys(name for source, _, target in triples for name in (source, target))
    return Graph.from_dict(
        {
            "nodes": [{"id": name} for name in names],
            "edges": [{"source": s, "relation": r, "target": t} for s, r, t in dict.fromkeys(triples)],
        }
    )
