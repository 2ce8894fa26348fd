"""The offline API: load a model, ask it things."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vglm.assemble import (
    CompletionChunk,
    embedding_output,
    request_output,
    score_output,
)
from vglm.candidates import Candidate, Normalize, candidate_scores, check_normalize, encode_candidates
from vglm.decode.detokenizer import Detokenizer
from vglm.decode.outputs import CandidateScore, EmbeddingOutput, RequestOutput, ScoreOutput
from vglm.decode.sampling_params import SamplingParams
from vglm.engine.metrics import EngineStats
from vglm.engine.request import Request, RequestKind
from vglm.errors import ModelError, RequestError, VGLMError
from vglm.llm_graph import GraphTasks
from vglm.model.tokenizer import Tokenizer
from vglm.options import EngineOptions, build_engine
from vglm.progress import progress_bar
from vglm.prompts import EncodedPrompt, Prompt, encode_prompts, is_single, token_ids

if TYPE_CHECKING:  # imported when it is needed: a start without chat or progress bars is 40 ms faster
    from vglm.decode.grammar import GrammarCompiler
    from vglm.decode.matcher import Grammar
    from vglm.decode.structured import StructuredOutputs
    from vglm.engine.constraint import ConstraintFactory
    from vglm.model.chat import ChatFormat
    from vglm.tasks.asking import Asked, Asking, Constraint, GraphSource

Message = Mapping[str, Any]


class LLM(GraphTasks):
    """A model and its engine.

    Args:
        model: a known name (`vglm pull --list`), a GGUF file, or a Hugging Face directory with safetensors.
        options: see `vglm.options.EngineOptions`: dtype, kv_cache_dtype, max_model_len, max_num_seqs,
            max_num_batched_tokens, kv_cache_memory, block_size, threads, enable_prefix_caching, seed, span_cache_dir.

    Raises ModelError for a model that cannot be loaded, ConfigError for options that do not fit, and
    TypeError for unknown ones.

    Example:
        >>> llm = LLM(model="smollm2-135m-instruct")
        >>> llm.generate(["The capital of France is"], SamplingParams(max_tokens=8, temperature=0))[0].text
    """

    def __init__(self, model: str | Path, **options: Any) -> None:
        from vglm.model.pull import resolve_model

        if not isinstance(model, (str, Path)):
            raise ModelError(
                f"model is {model!r}; give a known name, a GGUF file or a Hugging Face directory"
            )
        if unknown := options.keys() - EngineOptions.__slots__:
            raise TypeError(  # as Python does for any unknown keyword, so that callers can probe
                f"unknown option {', '.join(sorted(unknown))}; there are {', '.join(EngineOptions.__slots__)}"
            )
        chosen = EngineOptions(**options)
        path = resolve_model(model)
        self.options = chosen.for_model(path)
        with progress_bar(100, "packing weights", unit="%", delay=0.5) as advance:
            self.engine, packed = build_engine(path, self.options, lambda done: advance(int(done * 100)))
        self.model = str(model)
        self.path = path
        self.config = packed.config
        self._packed = packed
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._abandoned: deque[str] = deque()  # requests that nobody waits for any more
        self._ids = itertools.count()
        self._tokenizer: Tokenizer | None = None
        self._chat_format: ChatFormat | None = None
        self._grammars: GrammarCompiler | None = None
        self._asking: Asking | None = None

    def __repr__(self) -> str:
        return f"LLM(model={self.model!r}, dtype={self.options.weight_dtype!r}, kv_cache_dtype={self.options.kv_dtype!r})"

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.from_json(self._packed.tokenizer_json)
        return self._tokenizer

    @property
    def has_chat_format(self) -> bool:
        """Whether the model comes with a chat template."""
        return self._packed.chat_template is not None

    @property
    def chat_format(self) -> ChatFormat:
        """How the model wants conversations. Raises RequestError when it has no chat template."""
        from vglm.model.chat import ChatFormat

        if self._chat_format is None:
            if self._packed.chat_template is None:
                raise RequestError(
                    f"the model {self.model!r} has no chat template; give it a prompt of your own instead"
                )
            eos_id = self.config.eos_token_ids[0] if self.config.eos_token_ids else None
            self._chat_format = ChatFormat(self._packed.chat_template, self.tokenizer, eos_id)
        return self._chat_format

    def compile_structured(self, structured: StructuredOutputs) -> Grammar:
        """Structured outputs as the `constraint` of a request to the engine; may be called in any thread.

        Takes a millisecond as a rule, a third of a second more the first time, seconds for a hostile schema. What was
        compiled lately is kept. Raises RequestError that says why it cannot be compiled.
        """
        from vglm.decode.grammar import GrammarCompiler

        with self._loading:
            if self._grammars is None:
                self._grammars = GrammarCompiler(
                    self.tokenizer, self.config.vocab_size, self.config.eos_token_ids
                )
        return self._grammars.compile(structured)

    @property
    def asking(self) -> Asking:
        """Questions about graphs, for this model."""
        from vglm.tasks.asking import Asking
        from vglm.tasks.graph_prompt import GraphPrompts, parse_graph_mode

        with self._loading:
            if self._asking is None:
                mode = parse_graph_mode(self.options.graph_mode)
                room = self.engine.pool.num_blocks * self.options.block_size
                prompts = GraphPrompts(
                    self.tokenizer, self._packed.graph_card, self.options.block_size, mode, room
                )
                chat = self.chat_format if self.has_chat_format else None
                self._asking = Asking(self.tokenizer, self.config, prompts, chat)
        return self._asking

    def stats(self) -> EngineStats:
        """Queues, KV pool and cache, now."""
        return self.engine.stats()

    def compact(self) -> int:
        """Move the KV cache's live blocks together and give the rest back to the system; returns the bytes given back."""
        from vglm.engine.executor import block_bytes

        with self._lock:
            before = self.engine.stats().pool.committed
            self.engine.compact()
            released = before - self.engine.stats().pool.committed
        return released * block_bytes(self._packed, self.options.block_size, self.options.kv_dtype)

    # ---- generation ---------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        graph: GraphSource | Sequence[GraphSource] | None = None,
        constraint: Constraint | Sequence[Constraint] | None = None,
        graph_mode: str = "auto",
    ) -> list[RequestOutput]:
        """Complete one prompt or many; outputs come in the order of the prompts.

        A prompt is text, token ids, or a mapping (see `vglm.prompts.Prompt`). One SamplingParams serves all prompts, or
        give one for each.

        `graph`: the Graph that a prompt is about, or a GraphQuery for the part of it that the prompt needs; one for all,
        or one each. `constraint`: what an answer must be: "answer", "walk", "mentions", or see `vglm.Grounding`. `graph_mode`
        is the engine's own unless it is "spans" or "sequential". Outputs then have a `graph` (`vglm.GraphOutput`).

        Raises RequestError or GraphError, before anything runs, when a prompt or parameter cannot be served.
        """
        if graph is None:
            _refuse_without_graph(constraint)
            return self._complete(encode_prompts(prompts, self.tokenizer), sampling_params, use_tqdm)
        many: Sequence[Any] = [prompts] if is_single(prompts) else prompts  # type: ignore[assignment]
        asked = self._ask(self.asking.complete, many, graph, constraint, graph_mode)
        return self._complete([one.prompt for one in asked], sampling_params, use_tqdm, asked)

    def _ask(
        self, ask: Callable[..., Asked], prompts: Sequence[Any], graph: Any, constraint: Any, mode: str
    ) -> list[Asked]:
        from vglm.tasks.asking import one_each

        graphs, constraints = (
            one_each(name, given, len(prompts))
            for name, given in (("graph", graph), ("constraint", constraint))
        )
        each = zip(prompts, graphs, constraints, strict=True)
        return [ask(prompt, source, wanted, mode) for prompt, source, wanted in each]

    def _complete(
        self,
        encoded: Sequence[EncodedPrompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool,
        asked: Sequence[Asked] = (),
    ) -> list[RequestOutput]:
        params = _one_each(SamplingParams() if sampling_params is None else sampling_params, len(encoded))
        detokenizers = [
            self._detokenizers(e, p, incremental=False) for e, p in zip(encoded, params, strict=True)
        ]
        hooks = [_stop_hook(d, p) for d, p in zip(detokenizers, params, strict=True)]
        constraints = [self._constraint(p, asked[i] if asked else None) for i, p in enumerate(params)]

        def add(i: int) -> Request:
            return self._add(encoded[i], params[i], on_token=hooks[i], constraint=constraints[i])

        requests = self._run(add, len(encoded), use_tqdm)
        outputs = [
            request_output(request, e.text, d, self.tokenizer)
            for request, e, d in zip(requests, encoded, detokenizers, strict=True)
        ]
        for one, request, output in zip(asked, requests, outputs, strict=bool(asked)):
            for sequence, completion in zip(request.sequences, output.outputs, strict=True):
                completion.graph = one.output(request, sequence, completion.text)
        return outputs

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        graph: GraphSource | Sequence[GraphSource] | None = None,
        constraint: Constraint | Sequence[Constraint] | None = None,
        graph_mode: str = "auto",
        **template_variables: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation or many: lists of {"role": ..., "content": ...}, through the model's chat template.

        With a `graph`, it stands before the last message of the user; see `generate`.
        """
        if not isinstance(messages, Sequence):
            raise RequestError(f"messages must be a list of mappings; got {type(messages).__name__}")
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
        if graph is None:
            _refuse_without_graph(constraint)
            chat = self.chat_format
            prompts = [chat.encode(c, **template_variables) for c in conversations]  # type: ignore[arg-type]
            return self.generate(prompts, sampling_params, use_tqdm)
        ask = partial(self.asking.chat, **template_variables)
        asked = self._ask(ask, conversations, graph, constraint, graph_mode)
        return self._complete([one.prompt for one in asked], sampling_params, use_tqdm, asked)

    def stream(
        self,
        prompt: Prompt | Sequence[Message],
        sampling_params: SamplingParams | None = None,
        *,
        graph: GraphSource | None = None,
        constraint: Constraint | None = None,
        graph_mode: str = "auto",
        **template_variables: Any,
    ) -> Iterator[CompletionChunk]:
        """Complete one prompt, or one conversation, and yield its text as it becomes certain.

        The last chunk of each completion has a finish_reason, and a `graph` if the request has one: see `generate`.
        Leaving the loop ends the request.
        """
        params = _one_each(SamplingParams() if sampling_params is None else sampling_params, 1)[0]
        talk = isinstance(prompt, Sequence) and bool(prompt) and isinstance(prompt[0], Mapping)
        if not talk and not is_single(prompt):
            raise RequestError("stream takes one prompt; use generate for many")
        asked: Asked | None = None
        if graph is not None:
            ask = partial(self.asking.chat, **template_variables) if talk else self.asking.complete
            asked = self._ask(ask, [prompt], graph, constraint, graph_mode)[0]
            encoded: EncodedPrompt = asked.prompt
        else:
            _refuse_without_graph(constraint)
            if talk:
                prompt = self.chat_format.encode(prompt, **template_variables)  # type: ignore[arg-type]
            encoded = encode_prompts(prompt, self.tokenizer)[0]
        return self.stream_encoded(encoded, params, asked)

    def stream_encoded(
        self, encoded: EncodedPrompt, params: SamplingParams, asked: Asked | None = None
    ) -> Iterator[CompletionChunk]:
        """As `stream`, for a prompt that is ready, such as that of a question about a graph (see `asking`)."""
        detokenizers = self._detokenizers(encoded, params, incremental=True)
        chunks: deque[CompletionChunk] = deque()

        def on_token(index: int, token: int) -> str | None:
            text = detokenizers[index].append([token])
            chunks.append(CompletionChunk(index, text, [token]))
            return detokenizers[index].stopped

        compiled = self._constraint(params, asked)
        with self._lock:
            request = self._add(encoded, params, on_token=on_token, constraint=compiled)
        stream = self._stream(request, detokenizers, chunks, asked)
        next(stream)  # into its try block: from here on dropping the stream ends the request
        return stream

    def _stream(
        self,
        request: Request,
        detokenizers: list[Detokenizer],
        chunks: deque[CompletionChunk],
        asked: Asked | None,
    ) -> Iterator[CompletionChunk]:
        try:
            yield CompletionChunk(0, "", [])  # taken by `stream`
            while not request.finished:
                self._step()
                yield from _drain(chunks)
            yield from _drain(chunks)
            _raise_failed([request])
            for sequence, detokenizer in zip(request.sequences, detokenizers, strict=True):
                rest = detokenizer.finish()
                about = asked.output(request, sequence, detokenizer.text) if asked is not None else None
                yield CompletionChunk(
                    sequence.index, rest, [], sequence.finish_reason, sequence.stop_reason, about, request
                )
        finally:
            # The garbage collector may run this in the middle of a step: whoever has the engine then ends the request.
            self._abandoned.append(request.request_id)
            self._reap()

    # ---- other questions ----------------------------------------------------------------------------------

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

    # ---- inside -------------------------------------------------------------------------------------------

    def _add(self, prompt: EncodedPrompt, params: SamplingParams, **options: Any) -> Request:
        return self.engine.add_request(
            str(next(self._ids)), prompt.token_ids, params, **prompt.options(), **options
        )

    def _constraint(self, params: SamplingParams, asked: Asked | None = None) -> ConstraintFactory | None:
        wanted = params.structured_outputs
        if asked is not None and asked.decoder is not None:
            if wanted is not None:
                raise RequestError("give either structured_outputs or a constraint, not both", "constraint")
            return asked.decoder
        return None if wanted is None else self.compile_structured(wanted)

    def _run(self, add: Callable[[int], Request], count: int, use_tqdm: bool) -> list[Request]:
        """Add the requests and step until all of them are finished; on any error none of them stays in the engine."""
        requests: list[Request] = []
        with progress_bar(count, "requests", show=use_tqdm) as advance:
            try:
                with self._lock:
                    for i in range(count):
                        requests.append(add(i))
                done = 0
                while done < count:
                    updated = self._step()
                    if any(request.finished for request in updated) or not updated:
                        done = sum(request.finished for request in requests)
                        advance(done)
                _raise_failed(requests)
            finally:
                self._abandoned.extend(request.request_id for request in requests if not request.finished)
                self._reap()
        return requests

    def _step(self) -> list[Request]:
        with self._lock:
            updated = self.engine.step()
        self._reap()
        return updated

    def _reap(self) -> None:
        """End the abandoned requests, unless someone has the engine: they do it after their step."""
        while self._abandoned and self._lock.acquire(blocking=False):
            try:
                while self._abandoned:
                    self.engine.abort(self._abandoned.popleft())
            finally:
                self._lock.release()

    def _detokenizers(
        self, prompt: EncodedPrompt, params: SamplingParams, incremental: bool
    ) -> list[Detokenizer]:
        if params.n > self.options.max_num_seqs:
            raise RequestError(
                f"n={params.n} needs more sequences at once than max_num_seqs={self.options.max_num_seqs}"
            )
        return [Detokenizer(self.tokenizer, prompt.token_ids, params, incremental) for _ in range(params.n)]


def _refuse_without_graph(constraint: object) -> None:
    if constraint is not None:
        raise RequestError("a constraint is over a graph; give one (graph=...)", "constraint")


def _one_each(params: SamplingParams | Sequence[SamplingParams], count: int) -> list[SamplingParams]:
    if isinstance(params, SamplingParams):
        return [params] * count
    if not isinstance(params, Sequence) or not all(isinstance(p, SamplingParams) for p in params):
        raise RequestError("sampling_params must be a SamplingParams, or a list of one for each prompt")
    if len(params) != count:
        raise RequestError(
            f"{count} prompts but {len(params)} sampling_params; give one for all, or one each"
        )
    return list(params)


def _stop_hook(
    detokenizers: list[Detokenizer], params: SamplingParams
) -> Callable[[int, int], str | None] | None:
    if not params.stop_strings:
        return None

    def on_token(index: int, token: int) -> str | None:
        detokenizers[index].append([token])
        return detokenizers[index].stopped

    return on_token


def _drain(chunks: deque[CompletionChunk]) -> Iterator[CompletionChunk]:
    while chunks:
        yield chunks.popleft()


def _raise_failed(requests: Sequence[Request]) -> None:
    for request in requests:
        if request.error is not None:
            raise VGLMError(f"request {request.request_id} failed: {request.error}")
