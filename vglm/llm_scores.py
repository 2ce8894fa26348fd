"""What an LLM says of texts without writing any: embeddings, and how likely continuations are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vglm.assemble import embedding_output, score_output
from vglm.candidates import Candidate, Normalize, candidate_scores, check_normalize, encode_candidates
from vglm.decode.outputs import CandidateScore, EmbeddingOutput, ScoreOutput
from vglm.decode.sampling_params import SamplingParams
from vglm.engine.request import Request, RequestKind
from vglm.errors import RequestError
from vglm.llm_requests import Requests
from vglm.prompts import Prompt, encode_prompts, is_single, token_ids

if TYPE_CHECKING:
    from vglm.tasks.asking import GraphSource


class Scores(Requests):
    """Methods that `LLM` inherits."""

    def encode(self, prompts: Prompt | Sequence[Prompt], use_tqdm: bool = True) -> list[EmbeddingOutput]:
        """The mean of each prompt's hidden states after the final norm, float32 [hidden_size]."""
        encoded = encode_prompts(prompts, self.tokenizer)
        params = SamplingParams(max_tokens=1)
        requests = self._run(
            lambda i: self._add(encoded[i], params, kind=RequestKind.ENCODE), len(encoded), use_tqdm
        )
        return [embedding_output(request) for request in requests]

    def score(
        self,
        prompts: Prompt | Sequence[Prompt],
        continuations: str | Sequence[str | Sequence[int]],
        use_tqdm: bool = True,
    ) -> list[ScoreOutput]:
        """Log-probability of each continuation after its prompt (one prompt serves all continuations).

        A continuation is text, encoded by itself, or token ids.
        """
        if not isinstance(continuations, Sequence) or isinstance(continuations, bytes):
            raise RequestError(f"continuations must be text or a list; got {type(continuations).__name__}")
        wanted: list[Any] = [continuations] if isinstance(continuations, str) else list(continuations)
        encoded = encode_prompts(prompts, self.tokenizer)
        if len(encoded) == 1:
            encoded = encoded * len(wanted)
        if len(encoded) != len(wanted):
            raise RequestError(
                f"{len(encoded)} prompts but {len(wanted)} continuations; give one each, or one prompt"
            )
        targets = [
            self.tokenizer.encode(w, add_special=False)
            if isinstance(w, str)
            else token_ids(w, f"continuation {i}")
            for i, w in enumerate(wanted)
        ]
        params = SamplingParams(max_tokens=1)

        def add(i: int) -> Request:
            return self._add(encoded[i], params, kind=RequestKind.SCORE, target_token_ids=targets[i])

        return [score_output(request) for request in self._run(add, len(encoded), use_tqdm)]

    def score_candidates(
        self,
        prompt: Prompt,
        candidates: Sequence[Candidate],
        *,
        normalize: Normalize = None,
        end: bool = True,
        graph: GraphSource | None = None,
        graph_mode: str = "auto",
    ) -> list[CandidateScore]:
        """Log-probability of each candidate as the continuation of one prompt, thousands of them per second.

        Exactly what `score` gives one by one, in the order of the candidates, but what they share is computed once: the
        prompt, and every prefix. A candidate is text, encoded by itself, or token ids. `end`: the model's end token is part
        of each, so that a name competes with the names it begins. `normalize="tokens"`: `logprob` is the mean over the
        tokens instead of the sum. `graph`, `graph_mode`: what the prompt is about, as in `generate`. Raises RequestError that
        names what cannot be served.
        """
        check_normalize(normalize)
        if not is_single(prompt):
            raise RequestError("score_candidates takes one prompt")
        end_id = self.config.eos_token_ids[0] if end and self.config.eos_token_ids else None
        if end and end_id is None:
            raise RequestError(f"the model {self.model!r} has no end token; use end=False", "end")
        if graph is None:
            encoded = encode_prompts(prompt, self.tokenizer)[0]
        else:
            encoded = self.asking.complete(prompt, graph, mode=graph_mode).prompt
        targets = encode_candidates(candidates, self.tokenizer, end_id)
        params = SamplingParams(max_tokens=1)

        def add(_: int) -> Request:
            return self._add(encoded, params, kind=RequestKind.TREE, candidates=targets)

        tree = self._run(add, 1, use_tqdm=False)[0].tree
        assert tree is not None
        return candidate_scores(candidates, tree, self.tokenizer, normalize)
