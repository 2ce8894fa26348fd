"""Tool calls in the model's text: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` (Hermes' form).

The text comes in pieces that are cut anywhere; what is told of it does not depend on the cuts.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeGuard

OPEN = "<tool_call>"
CLOSE = "</tool_call>"

_NAME = r'"(?:[^"\\<]|\\[^<])*"'  # without <: what looks like the call's end must be it
_HEAD = re.compile(rf'\s*\{{\s*"name"\s*:\s*({_NAME})\s*,\s*"arguments"\s*:\s*(?=\{{)')
_STRUCTURE = re.compile(r'["{}\[\]]')
_IN_STRING = re.compile(r'["\\]')


def call_text(name: str, arguments: Any) -> str:
    """A call as the model is to write it."""
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"{OPEN}\n{body}\n{CLOSE}"


@dataclass(slots=True)
class ToolCall:
    """A call, or what is known of it: `arguments` is JSON text, complete when `done`."""

    index: int
    name: str
    arguments: str = ""
    done: bool = False
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")


@dataclass(frozen=True, slots=True)
class CallNews:
    """What is new of a call: that it begins, a piece of its arguments, or both."""

    call: ToolCall
    begins: bool
    arguments: str


#: Text around calls, or news of a call.
Piece = str | CallNews


class _JSONEnd:
    """Finds where a JSON object ends in text that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._skip = 0  # characters to pass over: what follows a backslash

    def find(self, text: str) -> int | None:
        """The position after the object's last bracket; None when it goes on."""
        at, self._skip = self._skip, 0
        while match := (_IN_STRING if self._in_string else _STRUCTURE).search(text, at):
            at, mark = match.end(), match[0]
            if mark == '"':
                self._in_string = not self._in_string
            elif mark == "\\":
                at += 1
            else:
                self._depth += 1 if mark in "{[" else -1
                if not self._depth:
                    return at
        self._skip = max(0, at - len(text))
        return None


class ToolCallReader:
    """Separates the calls in one answer from the text around them.

    Blanks next to a call belong to neither. What begins like a call and is none stays text.
    """

    def __init__(self) -> None:
        self.calls: list[ToolCall] = []
        self._read: Callable[[list[Piece]], bool] = self._read_text
        self._pending = ""  # read, but not understood yet
        self._blank = ""  # before the call that is being read
        self._after_call = False  # no text since the last call
        self._end = _JSONEnd()

    def feed(self, text: str) -> list[Piece]:
        """What has become certain, in order."""
        self._pending += text
        pieces: list[Piece] = []
        while self._read(pieces):
            continue
        return pieces

    def finish(self) -> str:
        """The text that was held back, when nothing more comes."""
        rest, self._pending = self._pending, ""
        if self._read == self._read_head:
            return self._blank + OPEN + rest
        if self._read == self._read_text:
            return rest.lstrip() if self._after_call else rest
        return ""

    # Each of these takes what it understands from the pending text, and says whether the next one can go on.

    def _read_text(self, pieces: list[Piece]) -> bool:
        before, mark, after = self._pending.partition(OPEN)
        sure = before.rstrip() if mark else _before_held(before)
        told = sure.lstrip() if self._after_call else sure
        if told:
            pieces.append(told)
            self._after_call = False
        if not mark:
            self._pending = before[len(sure) :]
            return False
        self._pending = after
        self._blank = "" if self._after_call else before[len(sure) :]
        self._read = self._read_head
        return True

    def _read_head(self, pieces: list[Piece]) -> bool:
        match = _HEAD.match(self._pending)
        name = None if match is None else _loads(match[1])
        if match is None or not _is_name(name):
            return self._read_other_form(pieces)
        self._begin(name, pieces)
        self._pending = self._pending[match.end() :]
        self._end = _JSONEnd()
        self._read = self._read_arguments
        return True

    def _read_other_form(self, pieces: list[Piece]) -> bool:
        """A call whose keys come in another order is read when it is complete."""
        body, mark, after = self._pending.partition(CLOSE)
        if not mark:
            return False
        value = _loads(body)
        name = value.get("name") if isinstance(value, dict) else None
        self._pending = after
        self._read = self._read_text
        if _is_name(name):
            self._begin(name, pieces)
            arguments = value.get("arguments", {})
            text = arguments if isinstance(arguments, str) else json.dumps(arguments)
            self._add(text, pieces)
            self.calls[-1].done = self._after_call = True
        else:
            pieces.append(self._blank + OPEN + body + CLOSE)
            self._after_call = False
        return True

    def _read_arguments(self, pieces: list[Piece]) -> bool:
        end = self._end.find(self._pending)
        read = self._pending[:end]
        if read:
            self._add(read, pieces)
        self._pending = self._pending[len(read) :]
        if end is None:
            return False
        self.calls[-1].done = True
        self._read = self._read_tail
        return True

    def _read_tail(self, _: list[Piece]) -> bool:
        end = self._pending.find(CLOSE)
        if end < 0:
            return False
        self._pending = self._pending[end + len(CLOSE) :]
        self._after_call = True
        self._read = self._read_text
        return True

    def _begin(self, name: str, pieces: list[Piece]) -> None:
        self.calls.append(ToolCall(len(self.calls), name))
        pieces.append(CallNews(self.calls[-1], True, ""))

    def _add(self, arguments: str, pieces: list[Piece]) -> None:
        call = self.calls[-1]
        call.arguments += arguments
        last = pieces[-1] if pieces else None
        if isinstance(last, CallNews) and last.call is call:
            pieces[-1] = CallNews(call, last.begins, last.arguments + arguments)
        else:
            pieces.append(CallNews(call, False, arguments))


def _before_held(text: str) -> str:
    """The text without its end that a call may follow, or that may be the beginning of one."""
    for length in range(min(len(OPEN) - 1, len(text)), 0, -1):
        if text.endswith(OPEN[:length]):
            return text[:-length].rstrip()
    return text.rstrip()


def _is_name(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and value.isprintable()


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
