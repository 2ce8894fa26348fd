"""Chat templates: Jinja programs that come with a model, run as the untrusted code that they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import jinja2
from jinja2 import meta

from vglm.errors import ModelError, RequestError
from vglm.model.template_sandbox import ENVIRONMENT, Budget, Refused, budget_now

MAX_SOURCE = 1 << 18
MAX_STEPS = 500_000
# Characters of all strings, intermediate ones included: a base, and a multiple of the messages' own.
BASE_CHARACTERS = 1 << 22
CHARACTERS_PER_INPUT = 32


class ChatTemplate:
    """A model's chat template. Thread-safe; the limits hold for each call of `render`."""

    def __init__(self, source: str, bos_token: str = "", eos_token: str = "") -> None:
        """Compile the template. Raises ModelError when it is too long or not valid Jinja."""
        if len(source) > MAX_SOURCE:
            raise ModelError(
                f"the chat template is {len(source)} characters long; at most {MAX_SOURCE} are read"
            )
        self.source = source
        self._constants = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._template = ENVIRONMENT.from_string(source)
        except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError, MemoryError) as error:
            raise ModelError(f"the model's chat template is not valid: {_line(error)}{error}") from error

    @cached_property
    def variables(self) -> frozenset[str]:
        """What the template reads of its surroundings: messages, perhaps tools, and others of its own."""
        return frozenset(meta.find_undeclared_variables(ENVIRONMENT.parse(self.source)))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt of a conversation.

        Each message needs a `role` string. Raises RequestError when the template refuses the messages, and
        ModelError when it exceeds its budget.
        """
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise RequestError(
                    f"message {i} must be a mapping with a 'role' string and 'content'", f"messages.{i}"
                )
        size = sum(len(value) for message in messages for value in message.values() if isinstance(value, str))
        steps, characters = MAX_STEPS + size // 8, BASE_CHARACTERS + CHARACTERS_PER_INPUT * size
        token = budget_now.set(Budget(steps, characters))
        try:
            return self._template.render(
                {
                    **variables,
                    **self._constants,
                    "messages": [dict(message) for message in messages],
                    "tools": [dict(tool) for tool in tools] if tools else None,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except (ModelError, RequestError):
            raise
        except Refused as error:
            raise RequestError(
                f"the model's chat template refuses these messages: {error}", "messages"
            ) from error
        except (MemoryError, RecursionError) as error:
            raise ModelError("the model's chat template needs too much memory or depth") from error
        except Exception as error:
            raise RequestError(
                f"the model's chat template fails on these messages: {error}", "messages"
            ) from error
        finally:
            budget_now.reset(token)


def _line(error: BaseException) -> str:
    line = getattr(error, "lineno", None)
    return f"line {line}: " if line else ""
