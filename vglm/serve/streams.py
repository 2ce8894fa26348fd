"""What requests have produced and nobody has taken yet.

A stream copies nothing: it remembers how far each sequence has been read, and what comes after is the sequence's own
output. So increments that nobody takes are merged, a reader that stops costs no more than its output, and the engine
never waits for one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from vglm.decode.detokenizer import Detokenizer
from vglm.engine.request import Request, TokenLogprobs
from vglm.engine.request import Sequence as EngineSequence
from vglm.errors import VGLMError


class AbortedError(VGLMError):
    """A stream was ended from outside before its requests were complete; `status` is what HTTP calls that."""

    status = 503


class ClientGoneError(AbortedError):
    """Nobody waits for the answer any more."""

    status = 499  # as nginx logs it; nobody sees it

    def __init__(self) -> None:
        super().__init__("the client has closed the connection")


@dataclass(slots=True)
class Increment:
    """News of one completion: text that has become certain, the tokens since the last increment, and its end."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs]
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class TextHook:
    """Turns tokens into text in the engine thread, for requests whose stop strings end them there."""

    def __init__(self, detokenizers: Sequence[Detokenizer]) -> None:
        self.detokenizers = detokenizers
        self.texts: list[deque[str]] = [deque() for _ in detokenizers]

    def __call__(self, index: int, token: int) -> str | None:
        detokenizer = self.detokenizers[index]
        self.texts[index].append(detokenizer.append([token]))
        return detokenizer.stopped


class _Lane:
    """How far one sequence has been read."""

    __slots__ = ("detokenizer", "done", "index", "sequence", "taken", "texts")

    def __init__(
        self, index: int, sequence: EngineSequence, detokenizer: Detokenizer, texts: deque[str] | None
    ) -> None:
        self.index = index
        self.sequence = sequence
        self.detokenizer = detokenizer
        self.texts = texts
        self.taken = 0
        self.done = False

    def take(self, most: int | None) -> Increment | None:
        """The next increment, of at most `most` tokens; None when there is nothing new."""
        sequence = self.sequence
        finish_reason = sequence.finish_reason  # before the tokens: they are complete when it is set
        end = len(sequence.output_token_ids)
        wants_logprobs = sequence.request.num_logprobs >= 0
        if wants_logprobs:  # those of tokens that a grammar forced come a step after them
            end = min(end, len(sequence.logprobs))
        start = self.taken
        if most is not None and end - start > most:
            end, finish_reason = start + most, None
        if end == start and finish_reason is None:
            return None
        token_ids = sequence.output_token_ids[start:end]
        text = self._text(token_ids, finish_reason)
        self.taken = end
        logprobs = sequence.logprobs[start:end] if wants_logprobs else []
        if finish_reason is None:
            return Increment(self.index, text, token_ids, logprobs)
        self.done = True
        return Increment(self.index, text, token_ids, logprobs, finish_reason, sequence.stop_reason)

    def _text(self, token_ids: list[int], finish_reason: str | None) -> str:
        if self.texts is None:
            request = self.sequence.request
            if finish_reason == "stop" and token_ids and token_ids[-1] in request.stop_ids:
                token_ids = token_ids if request.params.include_stop_str_in_output else token_ids[:-1]
            text = self.detokenizer.append(token_ids)
        else:
            text = ""
            while self.texts:
                text += self.texts.popleft()
        return text if finish_reason is None else text + self.detokenizer.finish()


class Stream:
    """The news of the requests of one HTTP request, numbered by choice: n completions of each in turn.

    Used in the event loop only, except `alert`, which the engine thread has called there.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        detokenizers: Sequence[Sequence[Detokenizer]],
        *,
        incremental: bool,
        most: int | None = None,
    ) -> None:
        """`incremental`: whether the reader wants news before the end; `most`: tokens in one increment."""
        self.requests = requests
        self.incremental = incremental
        self.aborted: AbortedError | None = None
        self._most = most
        self._waiter: asyncio.Future[None] | None = None
        self._lanes: list[_Lane] = []
        for request, of_request in zip(requests, detokenizers, strict=True):
            hook = request.on_token
            for i, (sequence, detokenizer) in enumerate(zip(request.sequences, of_request, strict=True)):
                texts = hook.texts[i] if isinstance(hook, TextHook) else None
                self._lanes.append(_Lane(len(self._lanes), sequence, detokenizer, texts))

    @property
    def finished(self) -> bool:
        """Whether every request has ended."""
        return all(request.finished for request in self.requests)

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.aborted is not None or all(request.finished or request.error for request in self.requests)

    @property
    def num_choices(self) -> int:
        """Completions in all."""
        return len(self._lanes)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return sum(len(lane.sequence.output_token_ids) for lane in self._lanes)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompts, and of the spans before them."""
        return sum(len(request.prompt_token_ids) + request.num_context_tokens for request in self.requests)

    @property
    def num_cached_tokens(self) -> int:
        """Those of them that came from the span cache."""
        return sum(request.num_cached_tokens + request.num_cached_context_tokens for request in self.requests)

    def alert(self) -> None:
        """There is news: wake the reader."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Until there may be news."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def increments(self) -> AsyncIterator[list[Increment]]:
        """The news, as often as the reader asks and there is some.

        Raises VGLMError when a request fails, and AbortedError when the stream is aborted.
        """
        while True:
            over = self.over  # before taking: what was produced until then is taken
            self.raise_failed()
            if news := self.take():
                yield news
            elif over:
                return
            else:
                await self.wait()

    def take(self) -> list[Increment]:
        """What is new in every unfinished completion."""
        lanes = (lane.take(self._most) for lane in self._lanes if not lane.done)
        return [increment for increment in lanes if increment is not None]

    async def complete(self) -> list[Increment]:
        """Wait for the end and return each completion as one increment; raises as `increments` does."""
        while not self.over:
            await self.wait()
        self.raise_failed()
        return self.take()

    def raise_failed(self) -> None:
        """Raises VGLMError when a request has failed, and AbortedError when the stream was aborted."""
        if self.aborted is not None:
            raise self.aborted
        for request in self.requests:
            if request.error is not None:
                raise VGLMError(f"the request failed: {request.error}")
