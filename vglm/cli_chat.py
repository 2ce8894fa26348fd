"""`vglm chat`: a conversation on a terminal, or one message per line from a pipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from vglm.errors import RequestError

if TYPE_CHECKING:
    from vglm.decode.sampling_params import SamplingParams
    from vglm.llm import LLM

_HELP = "/clear forgets the conversation, /exit leaves; Ctrl-C stops an answer, Ctrl-D leaves"


def converse(model: str, params: SamplingParams, engine: dict[str, Any], system: str | None) -> None:
    """Read messages and answer them until the input ends."""
    from vglm.llm import LLM

    llm = LLM(model, **engine)
    conversation = _Conversation(llm, params, system)
    if sys.stdin.isatty():
        import readline  # noqa: F401  line editing and history for input()

        print(f"{model}: {_HELP}", file=sys.stderr)
    while (message := _read()) is not None:
        if message in ("/exit", "/quit"):
            return
        if message == "/clear":
            conversation.clear()
        elif message in ("/help", "/?"):
            print(_HELP, file=sys.stderr)
        elif message:
            conversation.answer(message)


def _read() -> str | None:
    """The next message, or None at the end. Ctrl-C here raises KeyboardInterrupt, which leaves."""
    if sys.stdin.isatty():
        try:
            return input("> ").strip()
        except EOFError:
            print(file=sys.stderr)
            return None
    line = sys.stdin.readline()
    return line.strip() if line else None


class _Conversation:
    def __init__(self, llm: LLM, params: SamplingParams, system: str | None) -> None:
        self._llm = llm
        self._params = params
        self._start = [{"role": "system", "content": system}] if system else []
        self._messages = list(self._start)

    def clear(self) -> None:
        """Forget all but the system message."""
        self._messages = list(self._start)

    def answer(self, message: str) -> None:
        """Answer one message, streaming. Ctrl-C keeps what was said so far; an error forgets the message."""
        self._messages.append({"role": "user", "content": message})
        said: list[str] = []
        try:
            for chunk in self._llm.stream(self._messages, self._params):
                said.append(chunk.text)
                print(chunk.text, end="", flush=True)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            print(" [stopped]", end="", file=sys.stderr)
        except RequestError as error:
            self._messages.pop()
            print(f"error: {error}; /clear starts again", file=sys.stderr)
            if not sys.stdin.isatty():
                raise
            return
        print(flush=True)
        self._messages.append({"role": "assistant", "content": "".join(said)})
