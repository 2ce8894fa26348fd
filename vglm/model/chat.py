"""Conversations as tokens: a model's chat template around text that cannot become control tokens.

A template puts the messages of a conversation between control tokens, as in `<|im_start|>user`. Text that comes from
clients may spell such tokens too. So what it spells is hidden from the template behind private characters, and comes
back when the text between the template's own control tokens is encoded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vglm.errors import RequestError
from vglm.model.chat_template import ChatTemplate
from vglm.model.tokenizer import Tokenizer

_MARK = "\U00100000"  # the private character after it says what the two stand for
_FIRST = 0x100001
_END = _MARK + "\U0010fffd"  # stands after the message that is to be continued
_HERE = _MARK + "\U0010fffc"  # stands where `encode_around` parts a prompt

Message = Mapping[str, Any]


class ChatFormat:
    """How a model wants conversations; safe to share between threads.

    Control tokens come from the template alone: where a message, a tool or a variable spells one, it is read as plain text.
    """

    def __init__(self, source: str, tokenizer: Tokenizer, eos_id: int | None = None) -> None:
        """`source` is the template. Raises ModelError when it is not valid."""
        self._tokenizer = tokenizer
        bos, eos = (_name(tokenizer, token) for token in (tokenizer.bos_id, eos_id))
        self._template = ChatTemplate(source, bos, eos)
        spellings = {_spelling(tokenizer, token): token for token in tokenizer.special_ids}
        self._controls = {spelling: token for spelling, token in spellings.items() if spelling}
        self._hidden = _Hidden(self._controls)
        names = sorted(self._controls, key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, names))})") if names else None

    @property
    def source(self) -> str:
        """The template, as the model brings it."""
        return self._template.source

    def mentions(self, word: str) -> bool:
        """Whether the template's source has this word, as in a role or a key that it treats specially."""
        return word in self.source

    @property
    def writes_tool_calls(self) -> bool:
        """Whether the template itself tells the model of tools and of the form of calls that vGLM reads: Hermes'."""
        source = self.source
        return (
            "tools" in self._template.variables
            and "<tool_call>" in source
            and "arguments" in source
            and "<function=" not in source
        )

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The prompt of a conversation as text; see `encode`."""
        text = self._render(messages, tools, add_generation_prompt, continue_final_message, variables)
        return self._hidden.reveal(text)

    def encode(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> list[int]:
        """The prompt of a conversation as token ids.

        Messages are {"role": ..., "content": text, ...}, tools as in OpenAI's API; `variables` are the template's own.
        With `add_generation_prompt` the answer's head stands at the end; with `continue_final_message` the prompt ends
        within the last message instead. Raises RequestError that names the parameter when the template refuses them.
        """
        text = self._render(messages, tools, add_generation_prompt, continue_final_message, variables)
        return self._encode(text)

    def encode_around(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> tuple[list[int], list[int]]:
        """`encode` in two parts: what stands before the content of the user's last message, and the rest.

        Raises RequestError when there is no such message, or when the template does not write it once.
        """
        places = [i for i, m in enumerate(messages) if isinstance(m, Mapping) and m.get("role") == "user"]
        content = messages[places[-1]].get("content") if places else None
        if not isinstance(content, str):
            raise RequestError("a prompt with a graph needs a message of the user with text", "messages")
        text = self._render(
            messages, tools, add_generation_prompt, continue_final_message, variables, parted_at=places[-1]
        )
        before, here, after = text.partition(_HERE)
        if not here or _HERE in after:
            raise RequestError(
                "the model's chat template does not write the user's message once, so no graph can stand before it",
                "messages",
            )
        return self._encode(before), self._encode(after)

    def _encode(self, text: str) -> list[int]:
        if _MARK not in text:
            ids = self._tokenizer.encode(text, add_special=False)
            # A tokenizer that normalises text might find control tokens in what spells them in other characters.
            spelled = len(self._split.findall(text)) if self._split else 0
            if sum(token in self._tokenizer.special_ids for token in ids) == spelled:
                return ids
        return self._encode_between(text)

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        continue_final_message: bool,
        variables: Mapping[str, Any],
        parted_at: int | None = None,
    ) -> str:
        """The template's text, in which what messages spell is still hidden; a mark stands before the content of message
        `parted_at`.
        """
        try:
            messages, tools, variables = map(self._hidden.hide, (messages, tools, variables))
        except RecursionError as error:
            raise RequestError("messages, tools or variables are nested too deeply") from error
        if parted_at is not None:
            message = messages[parted_at]
            message = {**message, "content": _HERE + message["content"]}
            messages = [*messages[:parted_at], message, *messages[parted_at + 1 :]]
        if continue_final_message:
            messages = _marked(messages)
        text = self._template.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt and not continue_final_message,
            **variables,
        )
        if not continue_final_message:
            return text
        before, mark, _ = text.rpartition(_END)
        if not mark:
            raise RequestError(
                "the model's chat template leaves the last message out, so it cannot be continued",
                "continue_final_message",
            )
        return before

    def _encode_between(self, text: str) -> list[int]:
        """Encode piece by piece what stands between the template's control tokens."""
        ids: list[int] = []
        special = self._tokenizer.special_ids
        for piece in self._split.split(text) if self._split else [text]:
            if piece in self._controls:
                ids.append(self._controls[piece])
                continue
            revealed = self._hidden.reveal(piece)
            encoded = self._tokenizer.encode(revealed, add_special=False) if revealed == piece else []
            if revealed != piece or not special.isdisjoint(encoded):
                encoded = self._tokenizer.encode(revealed, add_special=False, allow_special_tokens=False)
            ids += encoded
        return ids


class _Hidden:
    """Replaces spelled control tokens by pairs of private characters, and back."""

    def __init__(self, spellings: Sequence[str] | Mapping[str, Any]) -> None:
        self._texts = [_MARK, *spellings]  # the mark itself may stand in a message
        self._pairs = {text: _MARK + chr(_FIRST + i) for i, text in enumerate(self._texts)}
        longest_first = sorted(self._texts, key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, longest_first)))
        self._pair = re.compile(f"{_MARK}(.?)", re.DOTALL)

    def hide(self, value: Any) -> Any:
        """A copy of a value (text, or mappings and lists of it) without any spelled control token."""
        if isinstance(value, str):
            return self._spelled.sub(lambda match: self._pairs[match[0]], value)
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
            return [self.hide(item) for item in value]
        return value

    def reveal(self, text: str) -> str:
        """The text with everything as it was spelled; a pair that the template has cut apart is left out."""
        return self._pair.sub(self._text_of, text) if _MARK in text else text

    def _text_of(self, match: re.Match[str]) -> str:
        index = ord(match[1]) - _FIRST if match[1] else -1
        return self._texts[index] if 0 <= index < len(self._texts) else match[1]


def _marked(messages: Sequence[Message]) -> list[Message]:
    """The messages with a mark at the end of the last one."""
    content = messages[-1].get("content") if messages else None
    if not isinstance(content, str) or not content:
        raise RequestError("continue_final_message needs a last message with text", "continue_final_message")
    return [*messages[:-1], {**messages[-1], "content": content + _END}]


def _name(tokenizer: Tokenizer, token: int | None) -> str:
    return "" if token is None else tokenizer.id_to_token(token) or ""


def _spelling(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.token_bytes(token).decode("utf-8", "replace")
