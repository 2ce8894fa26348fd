"""Questions over graphs: ExplaGraphs (support or counter) and NLGraph (paths and cycles), on the cases held out of training,
and NLGraph's questions on random graphs that nobody has seen.

Every answer is the likelier one of two, for every system. Ours runs in both modes, since a model that was trained with span
masks should lose nothing by them; the base also with the facts about a graph's shape that ours is given (see
vglm/graph/structure.py), which hold the answers to the questions about shape: the figures show whether they are read. NLGraph
asks several questions of one graph, so most held-out questions are about graphs of the training too; hence the random ones.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vglm.errors import ConfigError
from vglm.evaluate.dtypes import OWN, costs, labelled, opened
from vglm.evaluate.report import OURS, Figure, summary
from vglm.model.bundle import write_card
from vglm.model.graph_card import GraphCard
from vglm.train.data import shape, stance

if TYPE_CHECKING:
    from vglm import LLM

TASK = "graph reasoning"
METRIC = "accuracy"
MODES = ("spans", "sequential")
ANSWERS = ("Yes", "No")


def run(
    data: Path, *, model: str = OURS, base: str = "smollm2-135m-instruct", dtypes: Sequence[str] = (OWN,)
) -> list[Figure]:
    """Accuracy of `model`, in each of `dtypes`, and of its `base`. Raises ConfigError when `data` has neither set."""
    stances = _stances(data)
    shapes = {name: _shapes(data, name) for name in ("connectivity", "cycle")}
    if not stances and not any(shapes.values()):
        raise ConfigError(f"{data}: has neither graphqa/explagraphs nor graphqa/nlgraph")
    shapes["random graphs"] = random_cases()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, path in ((base, base), (f"{base}, with facts", _with_facts(Path(folder), base))):
            with opened(path) as llm:
                scores = _scores(llm, stances, shapes, "sequential")
            figures += [summary(TASK, data_set, name, METRIC, right) for data_set, right in scores.items()]
    found: dict[tuple[str, str], dict[str, list[float]]] = {}  # by data and mode, then by dtype
    for dtype in dtypes:
        with opened(model, dtype) as llm:
            for mode in MODES:
                for data_set, right in _scores(llm, stances, shapes, mode).items():
                    found.setdefault((data_set, mode), {})[dtype] = right
    for (data_set, mode), scores in found.items():
        said = () if mode == "spans" else (mode,)
        for dtype, right in scores.items():
            figures.append(summary(TASK, data_set, labelled(model, dtype, *said), METRIC, right))
        figures += costs(TASK, data_set, model, METRIC, scores, *said)
    return figures


def _scores(
    llm: LLM, stances: Sequence[stance.Stance], shapes: Mapping[str, Sequence[shape.ShapeCase]], mode: str
) -> dict[str, list[float]]:
    """1.0 or 0.0 for each case of each data set that is there."""
    found = {"ExplaGraphs": stance_scores(llm, stances, mode)} if stances else {}
    for name, cases in shapes.items():
        if cases:
            title = name if name == "random graphs" else f"NLGraph {name}"
            found[title] = shape_scores(llm, cases, mode)
    return found


def _with_facts(folder: Path, base: str) -> str:
    """The base as a model of its own, whose card asks for facts."""
    known = str(Path(base).resolve()) if Path(base).exists() else base
    write_card(folder, name="base", version="1", base_model=known, graph=GraphCard(facts=True))
    return str(folder)


def random_cases(count: int = 100, seed: int = 12_345) -> list[shape.ShapeCase]:
    """Questions about random graphs, as many about paths as about cycles."""
    rng = random.Random(seed)
    cases: list[shape.ShapeCase] = []
    while len(cases) < 2 * count:
        sample = shape.random_sample(rng)
        assert sample.graph is not None
        for turn in sample.turns:
            if turn.answer.startswith(("Yes", "No")):
                answer = turn.answer.startswith("Yes")
                cases.append(shape.ShapeCase(sample.graph, turn.question, answer, "", f"random:{len(cases)}"))
    return cases[: 2 * count]


def stance_scores(llm: LLM, cases: Sequence[stance.Stance], mode: str) -> list[float]:
    """1.0 for each case whose label is the likelier one."""
    return [
        float(
            llm.classify(case.graph, stance.LABELS, question=case.question, graph_mode=mode).best.name
            == case.label
        )
        for case in cases
    ]


def shape_scores(llm: LLM, cases: Sequence[shape.ShapeCase], mode: str) -> list[float]:
    """1.0 for each case of whose answers, yes and no, the right one is the likelier beginning of a reply."""
    from vglm import SamplingParams
    from vglm.decode.structured import StructuredOutputs

    either = StructuredOutputs(choice=list(ANSWERS))
    outputs = llm.chat(
        [[{"role": "user", "content": case.question}] for case in cases],
        SamplingParams(max_tokens=4, temperature=0, structured_outputs=either),
        use_tqdm=False,
        graph=[case.graph for case in cases],
        graph_mode=mode,
    )
    wanted = [ANSWERS[0 if case.answer else 1] for case in cases]
    return [float(one.outputs[0].text == answer) for one, answer in zip(outputs, wanted, strict=True)]


def _stances(data: Path) -> list[stance.Stance]:
    path = data / "graphqa/explagraphs/train.tsv"
    return [case for case in stance.read_stances(path) if stance.is_held_out(case)] if path.exists() else []


def _shapes(data: Path, name: str) -> list[shape.ShapeCase]:
    path = data / "graphqa/nlgraph" / name / "train.json"
    return [case for case in shape.read_nlgraph(path) if shape.is_held_out(case)] if path.exists() else []
