"""The demo's questions to a language model: each reads a part of the stored graph and can name nothing else."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vglm.graph.evidence import Candidate
from vglm.graph.graph import Edge, Graph
from vglm.graph.question import choice, evidence_graph, explanation, matched_phenotypes, supporting_edges

if TYPE_CHECKING:
    from vglm import LLM
    from vglm.decode.graph_outputs import Named

MOST_NAMED = 5  # phenotypes in one explanation


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

    def explain(self, candidate: Candidate) -> Answer | None:
        """Why a disease is a candidate: which of its phenotypes the model names first. None if none explains anything."""
        part = evidence_graph(self._graph, [candidate])
        matched = [node for node in matched_phenotypes(candidate) if node in part]
        if not matched:
            return None
        count = min(MOST_NAMED, len({part.name_of(node) for node in matched}))
        constraint = {"kind": "answer", "candidates": matched, "count": count, "min_count": min(2, count)}
        name = part.name_of(candidate.id)
        title = f"Why is {candidate.place}. {name} a candidate?"
        answer = self._ask(title, explanation(name, self._findings), part, constraint)
        named = {entity.id for entity in answer.named}
        answer.edges = [edge for edge in supporting_edges(self._graph, candidate) if edge.target in named]
        self._view.answered(answer)
        return answer

    def choose(self, candidates: Sequence[Candidate]) -> Answer | None:
        """Which of the candidates fits best, over the parts of the graph that were read before. None for fewer than two."""
        part = evidence_graph(self._graph, candidates)
        known = [candidate.id for candidate in candidates if candidate.id in part]
        if len(known) < 2:
            return None
        names = list(dict.fromkeys(part.name_of(node) for node in known))
        constraint = {"kind": "answer", "candidates": known}
        answer = self._ask("Which of them fits best?", choice(names, self._findings), part, constraint)
        self._view.answered(answer)
        return answer

    def _ask(
        self, title: str, messages: list[dict[str, str]], part: Graph, constraint: Mapping[str, Any]
    ) -> Answer:
        """Ask, show the answer as it comes, and measure; the clock starts before graph and prompt are made into tokens."""
        from vglm import SamplingParams

        answer = Answer(title, messages[-1]["content"], part)
        self._view.asking(answer)
        params = SamplingParams(max_tokens=128, temperature=0)
        options = {"continue_final_message": True, "add_generation_prompt": False}
        before = self._llm.engine.metrics.prompt_tokens
        started = time.perf_counter()
        for chunk in self._llm.stream(
            messages, params, graph=part, constraint=constraint, graph_mode="spans", **options
        ):
            answer.seconds = time.perf_counter() - started
            if chunk.token_ids and not answer.ttft:
                answer.ttft = answer.seconds
            answer.tokens += len(chunk.token_ids)
            answer.text += chunk.text
            self._view.piece(chunk.text)
            if chunk.graph is not None:
                answer.named = chunk.graph.answer
                answer.graph_tokens, answer.cached_tokens = (
                    chunk.graph.num_tokens,
                    chunk.graph.num_cached_tokens,
                )
        answer.computed_tokens = self._llm.engine.metrics.prompt_tokens - before
        return answer
