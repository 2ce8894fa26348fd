"""The demo's questions to a language model: each reads a part of the stored graph and can name nothing else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vglm.graph.evidence import Candidate
from vglm.graph.graph import Edge, Graph
from vglm.graph.question import choice, evidence_graph

if TYPE_CHECKING:
    from vglm import LLM
    from vglm.decode.graph_outputs import GraphOutput, Named
    from vglm.tasks.asking import Asked


@dataclass(slots=True)
class Answer:
    """What the model said over `graph`, and what it took: seconds and tokens.

    `named` are the entities in it, `edges` those of the graph that link them to the candidate. `graph_tokens` are the
    graph's in the prompt, `cached_tokens` those of them that were computed before, `computed_tokens` all that were not.
    """

    title: str
    lead: str
    graph: Graph
    text: str = ""
    named: tuple[Named, ...] = ()
    edges: list[Edge] = field(default_factory=list)
    ttft: float = 0.0
    seconds: float = 0.0
    tokens: int = 0
    graph_tokens: int = 0
    cached_tokens: int = 0
    computed_tokens: int = 0


class Asker:
    """Asks one model about one patient's candidates."""

    def __init__(self, llm: LLM, graph: Graph, findings: Sequence[str], view: Any) -> None:
        self._llm = llm
        self._graph = graph
        self._findings = findings  # names
        self._view = view

    def explain(
        self, candidate: Candidate, title: str = "Why is {place}. {name} a candidate?"
    ) -> Answer | None:
        """Why a disease is a candidate, as `LLM.suggest` explains it. None if none of its phenotypes explains anything."""
        from vglm.tasks.graph_output import named
        from vglm.tasks.suggestion import why_task

        started = time.perf_counter()
        if candidate.id not in self._graph:
            return None
        task = why_task(self._llm.asking, self._graph, candidate, self._findings, "spans")
        if task.asked is None:
            return None
        name = task.asked.graph.name_of(candidate.id)
        asked = title.format(place=candidate.place, name=name)
        answer, output = self._ask(asked, task.lead, task.asked, started)
        said = task.explained(answer.text, None, output)
        answer.edges = list(said.edges)
        answer.named = answer.named or tuple(named(task.asked.graph, node) for node in output.mentions)
        self._view.answered(answer)
        return answer

    def last(self, candidates: Sequence[Candidate]) -> Answer | None:
        """A question over what has been read already: which candidate fits best, or of a model whose ranking has answered that,
        the first one again."""
        if not candidates or not self._llm.asking.prompts.card.spans:
            return self.choose(candidates)
        return self.explain(candidates[0], "Asked again: why is {place}. {name} a candidate?")

    def choose(self, candidates: Sequence[Candidate]) -> Answer | None:
        """Which of the candidates fits best, over the parts of the graph that were read before. None for fewer than two."""
        part = evidence_graph(self._graph, candidates)
        known = [candidate.id for candidate in candidates if candidate.id in part]
        if len(known) < 2:
            return None
        names = list(dict.fromkeys(part.name_of(node) for node in known))
        started = time.perf_counter()
        messages = choice(names, self._findings)
        asked = self._llm.asking.chat(
            messages,
            part,
            {"kind": "answer", "candidates": known},
            "spans",
            continue_final_message=True,
            add_generation_prompt=False,
        )
        answer, _ = self._ask("Which of them fits best?", messages[-1]["content"], asked, started)
        self._view.answered(answer)
        return answer

    def _ask(self, title: str, lead: str, asked: Asked, started: float) -> tuple[Answer, GraphOutput]:
        """Ask, show the answer as it comes, and measure; the clock was started before graph and prompt were made."""
        from vglm import SamplingParams

        answer = Answer(title, lead, asked.graph)
        self._view.asking(answer)
        params = SamplingParams(max_tokens=128, temperature=0)
        before = self._llm.engine.metrics.prompt_tokens
        output: GraphOutput | None = None
        for chunk in self._llm.stream_encoded(asked.prompt, params, asked):
            answer.seconds = time.perf_counter() - started
            if chunk.token_ids and not answer.ttft:
                answer.ttft = answer.seconds
            answer.tokens += len(chunk.token_ids)
            answer.text += chunk.text
            self._view.piece(chunk.text)
            if chunk.graph is not None:
                output = chunk.graph
                answer.named = chunk.graph.answer
                answer.graph_tokens, answer.cached_tokens = (
                    chunk.graph.num_tokens,
                    chunk.graph.num_cached_tokens,
                )
        answer.computed_tokens = self._llm.engine.metrics.prompt_tokens - before
        assert output is not None  # the last chunk has one
        return answer, output
