"""Ranks candidates: how likely the model is to name each of them after a graph and a question.

All candidates are scored exactly, in one request over the trie of their names (vglm/engine/tree.py), so that a name that
is the beginning of another competes with it by the token that ends an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from vglm.candidates import encode_candidates
from vglm.decode.graph_outputs import GraphOutput, Named
from vglm.engine.request import Request
from vglm.errors import RequestError
from vglm.tasks.asking import Asked, Asking
from vglm.tasks.calibration import calibrated
from vglm.tasks.graph_output import graph_output

MAX_TOP = 10_000


@dataclass(frozen=True, slots=True)
class Scored(Named):
    """A candidate with its log-probability, in nats: of its name and of the end of the answer, after the prompt. `score`
    is calibrated (see `vglm.tasks.calibration`). `known`: the graph says already what was asked about.
    """

    logprob: float = 0.0
    known: bool = False


@dataclass(frozen=True, slots=True)
class Ranked:
    """Ranked candidates.

    Attributes:
        candidates: the best first; equal ones in the order of their ids.
        num_candidates: how many were scored.
        temperature: of the scores.
        graph: what was read, and whence.
        num_prompt_tokens, num_cached_tokens: tokens of graph and question, and those that came from the cache.
        num_candidate_tokens: tokens that were scored, those that candidates share counted once.
    """

    candidates: tuple[Scored, ...]
    num_candidates: int
    temperature: float
    graph: GraphOutput
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_candidate_tokens: int = 0

    @property
    def best(self) -> Scored:
        """The likeliest candidate."""
        return self.candidates[0]


@dataclass(slots=True)
class RankingTask:
    """A ranking that is ready for the engine: a TREE request of `asked.prompt` with `targets`, then `ranked`."""

    asked: Asked
    candidates: list[Named]
    texts: list[str]
    targets: list[list[int]]
    top: int
    temperature: float
    known: frozenset[str] = frozenset()

    def ranked(self, request: Request) -> Ranked:
        """What the finished request says."""
        tree = request.tree
        assert tree is not None
        logprobs = [sum(tokens) for tokens in tree.token_logprobs()]
        scores = calibrated(logprobs, self.texts, self.temperature).tolist()
        order = sorted(range(len(logprobs)), key=lambda i: (-scores[i], self.candidates[i].id))
        best = tuple(self._scored(i, scores[i], logprobs[i]) for i in order[: self.top])
        asked = self.asked
        entities = asked.retrieved.entities if asked.retrieved is not None else ()
        ids = tuple(dict.fromkeys(mention.best.id for mention in entities))
        graph = graph_output(asked.graph, asked.prompt, request, None, asked.retrieved, ids)
        return Ranked(
            best,
            len(logprobs),
            self.temperature,
            graph,
            len(request.prompt_token_ids) + request.num_context_tokens,
            request.num_cached_tokens + request.num_cached_context_tokens,
            tree.trie.num_tokens,
        )

    def _scored(self, index: int, score: float, logprob: float) -> Scored:
        named = self.candidates[index]
        return Scored(named.id, named.name, named.type, score, logprob, named.id in self.known)


def ranking_task(
    asking: Asking,
    asked: Asked,
    candidates: list[Named],
    texts: list[str],
    top: int,
    temperature: float,
    known: frozenset[str] = frozenset(),
) -> RankingTask:
    """The ranking of `candidates`, which the model would call by `texts`. Raises RequestError that names what is wrong."""
    check_top(top)
    check_temperature(temperature)
    lead = asking.answer_lead
    encoded = encode_candidates([lead + text for text in texts], asking.tokenizer, asking.end_id)
    return RankingTask(asked, candidates, texts, encoded, top, float(temperature), known)


def check_top(top: object) -> None:
    """Raises RequestError unless so many candidates can be given."""
    if isinstance(top, bool) or not isinstance(top, int) or not 1 <= top <= MAX_TOP:
        raise RequestError(f"top is {top!r:.40}; it must be a whole number from 1 to {MAX_TOP}", "top")


def check_temperature(value: object) -> None:
    """Raises RequestError unless it is a positive number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not isfinite(float(value)) or not 1e-3 <= float(value) <= 1e3:  # type: ignore[arg-type]
        raise RequestError(f"temperature is {value!r:.40}; it must lie in 0.001 to 1000", "temperature")
