"""Reading a graph that no training has seen: short questions whose answers the graph gives, or does not give.

Invented worlds, once with relations that lessons have and once with others, and parts of Nations, asked about in words of its
own. An answer is right when it names exactly the entities that it should, or says yes, no, or that nothing is said.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from vglm.decode.sampling_params import SamplingParams
from vglm.evaluate.dtypes import OWN, costs, labelled, opened
from vglm.evaluate.report import OURS, Figure, summary
from vglm.graph.graph import Graph
from vglm.llm import LLM
from vglm.train.data.asking import NOT_SAID, world_sample
from vglm.train.data.reading import reading_sample
from vglm.train.data.world import HELD_OUT, TRAINED
from vglm.train.samples import Sample, Turn

TASK = "reading graphs"
METRIC = "right answers"
GRAPHS = 60
SEED = 54_321
MOST_TOKENS = 60  # of an answer


def run(
    data: Path, *, model: str = OURS, base: str = "smollm2-135m-instruct", dtypes: Sequence[str] = (OWN,)
) -> list[Figure]:
    """Shares of right answers of `model`, in each of `dtypes`, and of its `base`."""
    sets = question_sets(data)
    figures: list[Figure] = []
    with opened(base) as llm:
        figures += [summary(TASK, name, base, METRIC, scores(llm, asked)) for name, asked in sets.items()]
    found: dict[str, dict[str, list[float]]] = {name: {} for name in sets}
    for dtype in dtypes:
        with opened(model, dtype) as llm:
            for name, asked in sets.items():
                found[name][dtype] = scores(llm, asked)
    for name, by_dtype in found.items():
        figures += [
            summary(TASK, name, labelled(model, dtype), METRIC, right) for dtype, right in by_dtype.items()
        ]
        figures += costs(TASK, name, model, METRIC, by_dtype)
    return figures


def question_sets(data: Path) -> dict[str, list[Sample]]:
    """Questions by data set; Nations only where `data` has it."""
    sets = {
        "invented graphs": list(_drawn(lambda rng: world_sample(rng, TRAINED))),
        "invented graphs, unseen relations": list(_drawn(lambda rng: world_sample(rng, HELD_OUT))),
    }
    folder = data / "kg/nations"
    if folder.is_dir():
        graph = Graph.load(folder, split="train")
        sets["Nations"] = list(_drawn(lambda rng: reading_sample(graph, rng)))
    return sets


def _drawn(draw: Callable[[random.Random], Sample | None]) -> Iterator[Sample]:
    """GRAPHS samples with those of their questions that have short answers."""
    rng = random.Random(SEED)
    count = 0
    while count < GRAPHS:
        sample = draw(rng)
        if sample is None or not (turns := tuple(turn for turn in sample.turns if _is_short(turn))):
            continue
        count += 1
        yield replace(sample, turns=turns)


def _is_short(turn: Turn) -> bool:
    """Whether names, a number, yes, no or "not said" is the whole answer, and not sentences."""
    return not turn.lead and (turn.answer in ("Yes.", "No.", NOT_SAID) or not turn.answer.endswith("."))


def scores(llm: LLM, samples: Sequence[Sample]) -> list[float]:
    """1.0 or 0.0 for each question: whether the greedy answer is right."""
    asked = [(turn, sample.graph) for sample in samples for turn in sample.turns]
    outputs = llm.chat(
        [[{"role": "user", "content": turn.question}] for turn, _ in asked],
        SamplingParams(max_tokens=MOST_TOKENS, temperature=0),
        use_tqdm=False,
        graph=[graph for _, graph in asked if graph is not None],
    )
    return [
        float(is_right(output.outputs[0].text, turn.answer))
        for output, (turn, _) in zip(outputs, asked, strict=True)
    ]


def is_right(said: str, wanted: str) -> bool:
    """Whether two answers say the same: the same names in any order, or the same word."""
    return _parts(said) == _parts(wanted)


def _parts(answer: str) -> set[str]:
    return {part.strip().rstrip(".").lower() for part in answer.strip().split(", ")}
