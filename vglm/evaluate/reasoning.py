"""Questions over graphs: ExplaGraphs (support or counter) and NLGraph (paths and cycles), on the cases held out of training.

Every system gets the same prompts: the graph, and the question of the case. Ours runs in both modes, since a model that was
trained with span masks should lose nothing by them.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vglm.errors import ConfigError
from vglm.evaluate.report import OURS, Figure, summary
from vglm.train.data import shape, stance

if TYPE_CHECKING:
    from vglm import LLM

TASK = "graph reasoning"
MODES = ("spans", "sequential")
ANSWERS = ("Yes", "No")


def run(
    data: Path, *, model: str = OURS, base: str = "smollm2-135m-instruct", dtypes: Sequence[str] = ("int8",)
) -> list[Figure]:
    """Accuracy of `model` and of its `base`, for each of `dtypes`. Raises ConfigError when `data` has neither set."""
    stances = _stances(data)
    shapes = {name: _shapes(data, name) for name in ("connectivity", "cycle")}
    if not stances and not any(shapes.values()):
        raise ConfigError(f"{data}: has neither graphqa/explagraphs nor graphqa/nlgraph")
    figures: list[Figure] = []
    systems = [(base, base, "int8", "sequential")]
    systems += [(_name(model, dtype, mode), model, dtype, mode) for dtype in dtypes for mode in MODES]
    for name, path, dtype, mode in systems:
        with opened(path, dtype) as llm:
            if stances:
                right = stance_scores(llm, stances, mode)
                figures.append(summary(TASK, "ExplaGraphs", name, "accuracy", right))
            for data_set, cases in shapes.items():
                if cases:
                    right = shape_scores(llm, cases, mode)
                    figures.append(summary(TASK, f"NLGraph {data_set}", name, "accuracy", right))
    return figures


@contextmanager
def opened(model: str, dtype: str = "int8") -> Iterator[LLM]:
    """The model, and its memory given back afterwards."""
    from vglm import LLM

    llm = LLM(model=model, dtype=dtype)
    try:
        yield llm
    finally:
        del llm
        gc.collect()


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
    """1.0 for each case whose reply begins with the right one of yes and no."""
    from vglm import SamplingParams

    outputs = llm.chat(
        [[{"role": "user", "content": case.question}] for case in cases],
        SamplingParams(max_tokens=24, temperature=0),
        use_tqdm=False,
        graph=[case.graph for case in cases],
        graph_mode=mode,
    )
    wanted = [ANSWERS[0] if case.answer else ANSWERS[1] for case in cases]
    return [
        float(output.outputs[0].text.strip().lower().startswith(answer.lower()))
        for output, answer in zip(outputs, wanted, strict=True)
    ]


def _name(model: str, dtype: str, mode: str) -> str:
    if dtype == "int8" and mode == "spans":
        return model
    return f"{model} ({mode})" if dtype == "int8" else f"{model} ({dtype}, {mode})"


def _stances(data: Path) -> list[stance.Stance]:
    path = data / "graphqa/explagraphs/train.tsv"
    return [case for case in stance.read_stances(path) if stance.is_held_out(case)] if path.exists() else []


def _shapes(data: Path, name: str) -> list[shape.ShapeCase]:
    path = data / "graphqa/nlgraph" / name / "train.json"
    return [case for case in shape.read_nlgraph(path) if shape.is_held_out(case)] if path.exists() else []
