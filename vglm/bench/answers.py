"""What a server must answer: every token that was asked for, in order, and a proper end. Anything less is a failure."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

from vglm.bench.event_stream import EventParser
from vglm.bench.fast_json import NOT_JSON, loads

_MAX_BODY = 64 << 20
_SHOWN = 200  # characters of what a server said


class RequestFailure(Exception):
    """Why a request has failed: a reason that requests share, and what was special about this one."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for: `tokens`, exactly that many if `exact`, with the id of each if `token_ids`."""

    tokens: int
    exact: bool = True
    token_ids: bool = False


class Answer:
    """One response, and its body as a whole."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._body = bytearray()

    def begin(self, status: int, headers: dict[str, str]) -> None:
        """The head has come. Names of headers are in lower case."""
        self.status = status
        self.headers = headers

    def feed(self, body: bytes, now: float) -> None:
        """More of the body, received at `now` (seconds)."""
        self._body += body
        if len(self._body) > _MAX_BODY:
            raise RequestFailure("answer too large", f"more than {_MAX_BODY >> 20} MB")

    def text(self) -> str:
        """The body as text."""
        return self._body.decode("utf-8", "replace")

    def check_status(self) -> None:
        """Raises RequestFailure with what the server said unless the status is 200."""
        if self.status != 200:
            raise RequestFailure(f"HTTP {self.status}", _error_message(bytes(self._body)))

    def document(self) -> Any:
        """The body as JSON. Raises RequestFailure."""
        try:
            return loads(bytes(self._body))
        except NOT_JSON:
            raise RequestFailure("no JSON", _shorten(self.text())) from None


class Completion(Answer):
    """The answer of a completions or chat endpoint, in one piece."""

    def __init__(self, wanted: Wanted) -> None:
        super().__init__()
        self.wanted = wanted
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.finish_reason: str | None = None
        self.num_token_ids = 0
        self._has_usage = False

    def check(self) -> None:
        """The response is complete. Raises RequestFailure when it is not what was asked for."""
        self.check_status()
        self._finish()
        wanted = self.wanted
        if self.finish_reason is None:
            raise RequestFailure("no finish_reason")
        if not self._has_usage:
            raise RequestFailure("no usage")
        if wanted.exact and self.output_tokens != wanted.tokens:
            kind = "tokens missing" if self.output_tokens < wanted.tokens else "too many tokens"
            raise RequestFailure(kind, f"{self.output_tokens} of {wanted.tokens}, {self.finish_reason}")
        if self.output_tokens > wanted.tokens:
            raise RequestFailure("too many tokens", f"{self.output_tokens} of {wanted.tokens}")
        if wanted.token_ids and self.num_token_ids != self.output_tokens:
            raise RequestFailure(
                "tokens not delivered", f"{self.num_token_ids} ids came, {self.output_tokens} were counted"
            )
        if wanted.exact and self.finish_reason != "length":
            raise RequestFailure("wrong finish_reason", self.finish_reason)

    def _finish(self) -> None:
        document = self.document()
        choices = _choices(document)
        if len(choices) != 1:
            raise RequestFailure("wrong number of choices", f"{len(choices)} instead of 1")
        self._take_choice(choices[0])
        self._take_usage(document.get("usage"))

    def _take_choice(self, choice: Any) -> bool:
        """Note what a choice says; whether it carries something of the output."""
        if not isinstance(choice, dict) or choice.get("index") != 0:
            raise RequestFailure("wrong choice", _shorten(repr(choice)))
        if self.finish_reason is not None:
            raise RequestFailure("output after the finish_reason", _shorten(repr(choice)))
        reason = choice.get("finish_reason")
        if reason is not None:
            self.finish_reason = str(reason)
        token_ids = choice.get("token_ids")
        if isinstance(token_ids, list):
            self.num_token_ids += len(token_ids)
        text = choice.get("text")
        if text is None:
            text = _message_text(choice.get("delta") or choice.get("message") or {})
        return bool(text or token_ids)

    def _take_usage(self, usage: Any) -> None:
        if isinstance(usage, dict):
            try:
                self.prompt_tokens = int(usage["prompt_tokens"])
                self.output_tokens = int(usage["completion_tokens"])
            except (KeyError, TypeError, ValueError, OverflowError):
                raise RequestFailure("malformed usage", _shorten(repr(usage))) from None
            self._has_usage = True


class StreamedCompletion(Completion):
    """The answer of a completions or chat endpoint as an event stream, with the time of every message.

    `first` and `last` are the times of the first and last message with output; `gaps` the seconds between each two.
    """

    def __init__(self, wanted: Wanted) -> None:
        super().__init__(wanted)
        self.first: float | None = None
        self.last = 0.0
        self.gaps = array("f")
        self._events = EventParser()
        self._done = False
        self._first_choice: float | None = (
            None  # of an output that has no text at all, such as special tokens
        )
        self._is_stream = False

    def begin(self, status: int, headers: dict[str, str]) -> None:
        super().begin(status, headers)
        self._is_stream = status == 200 and headers.get("content-type", "").startswith("text/event-stream")

    def feed(self, body: bytes, now: float) -> None:
        if not self._is_stream:  # an error, or a server that does something else
            super().feed(body, now)
            return
        for payload in self._events.feed(body):
            self._event(payload, now)

    def _event(self, payload: bytes, now: float) -> None:
        if self._done:
            raise RequestFailure("events after [DONE]", _shorten(payload.decode("utf-8", "replace")))
        if payload == b"[DONE]":
            self._done = True
            return
        try:
            event = loads(payload)
        except NOT_JSON:
            raise RequestFailure("malformed event", _shorten(payload.decode("utf-8", "replace"))) from None
        choices = _choices(event)
        self._take_usage(event.get("usage"))
        for choice in choices:
            if self._take_choice(choice):
                self._output(now)
            elif self._first_choice is None:
                self._first_choice = now

    def _output(self, now: float) -> None:
        if self.first is None:
            self.first = now
        else:
            self.gaps.append(now - self.last)
        self.last = now

    def _finish(self) -> None:
        if not self._is_stream:
            raise RequestFailure("no event stream", _shorten(self.text()))
        if self._events.incomplete:
            raise RequestFailure("the last event is cut off")
        if not self._done:
            raise RequestFailure("no [DONE]")
        if self.first is None and self._first_choice is not None:
            self.first = self.last = self._first_choice


def _choices(document: Any) -> list[Any]:
    """The choices of an answer or an event. Raises RequestFailure when it is an error or something else."""
    if isinstance(document, dict):
        if document.get("error"):
            raise RequestFailure("error", _describe(document["error"]))
        choices = document.get("choices")
        if isinstance(choices, list):
            return choices
    raise RequestFailure("no completion", _shorten(repr(document)))


def _message_text(message: Any) -> Any:
    """What a chat message or its increment says: content, reasoning, or tool calls."""
    if not isinstance(message, dict):
        return None
    return (
        message.get("content")
        or message.get("reasoning_content")
        or message.get("reasoning")
        or message.get("tool_calls")
    )


def _error_message(body: bytes) -> str:
    """What an error's body says: OpenAI's shape, FastAPI's, or its text."""
    try:
        document = loads(body)
    except NOT_JSON:
        return _shorten(body.decode("utf-8", "replace"))
    if isinstance(document, dict):
        for key in ("error", "detail", "message"):
            if document.get(key):
                return _describe(document[key])
    return _shorten(repr(document))


def _describe(error: Any) -> str:
    if isinstance(error, dict) and error.get("message"):
        error = error["message"]
    return _shorten(error if isinstance(error, str) else repr(error))


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 3] + "..."
