"""Requests of the offline API: added to the engine, run to their end or streamed, and never left in it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vglm.assemble import CompletionChunk, request_output
from vglm.decode.detokenizer import Detokenizer
from vglm.decode.outputs import RequestOutput
from vglm.decode.sampling_params import SamplingParams
from vglm.engine.request import Request
from vglm.errors import RequestError, VGLMError
from vglm.llm_model import LoadedModel
from vglm.progress import progress_bar
from vglm.prompts import EncodedPrompt

if TYPE_CHECKING:
    from vglm.engine.constraint import ConstraintFactory
    from vglm.tasks.asking import Asked


class Requests(LoadedModel):
    """Runs requests; whoever calls steps the engine, for all that are in it."""

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

    def _complete(
        self,
        encoded: Sequence[EncodedPrompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool,
        asked: Sequence[Asked] = (),
    ) -> list[RequestOutput]:
        params = one_each(SamplingParams() if sampling_params is None else sampling_params, len(encoded))
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


def one_each(params: SamplingParams | Sequence[SamplingParams], count: int) -> list[SamplingParams]:
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
