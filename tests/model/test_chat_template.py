"""Chat templates render as in transformers, and a hostile one is stopped early with a clear error."""

from __future__ import annotations

import time

import pytest

from vglm.errors import ModelError, RequestError, VGLMError
from vglm.model.chat_template import ChatTemplate

MESSAGES = [
    {"role": "system", "content": "You know HPO."},
    {"role": "user", "content": " What is ataxia? "},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nA sign."},
    {"role": "user", "content": "Why?"},
]
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
    "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + "
    "'<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
)
THINKING = """{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" and ns.last == messages|length - 1 %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" and '</think>' in message.content %}
        {{- message.content.split('</think>')[-1].lstrip('\\n') }}|
    {%- else %}
        {{- message.content.strip() }}{{ '' if loop.last else '|' }}
    {%- endif %}
{%- endfor %}
{%- if tools %}
    {%- for tool in tools %}{{ '\\n' + tool | tojson }}{% endfor %}
{%- endif %}"""


def test_chatml() -> None:
    text = ChatTemplate(CHATML).render(MESSAGES[:2])
    assert text == (
        "<|im_start|>system\nYou know HPO.<|im_end|>\n<|im_start|>user\n What is ataxia? <|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert ChatTemplate(CHATML).render(MESSAGES[:1], add_generation_prompt=False).endswith("HPO.<|im_end|>\n")


def test_llama3_uses_the_begin_token_once() -> None:
    text = ChatTemplate(LLAMA3, bos_token="<|begin_of_text|>").render(MESSAGES[:2])
    assert text.startswith(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou know HPO.<|eot_id|>"
    )
    assert text.count("<|begin_of_text|>") == 1
    assert "\n\nWhat is ataxia?<|eot_id|>" in text


def test_loops_namespaces_slices_and_tools() -> None:
    tools = [{"name": "sübgraph", "parameters": {"depth": 2, "html": "<b>"}}]
    text = ChatTemplate(THINKING).render(MESSAGES, tools=tools)
    assert text == (
        "You know HPO.|What is ataxia?|A sign.|Why?\n"
        '{"name": "sübgraph", "parameters": {"depth": 2, "html": "<b>"}}'
    )


def test_generation_marks_and_break() -> None:
    template = "{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}{% break %}{% endfor %}"
    assert ChatTemplate(template).render(MESSAGES) == "system"


def test_indent_join_replace_as_in_jinja() -> None:
    template = "{{ 'a\nb\n\nc' | indent(2) }}|{{ [1, 'x'] | join(', ') }}|{{ 'aXa' | replace('a', 'b') }}"
    assert ChatTemplate(template).render(MESSAGES) == "a\n  b\n\n  c|1, x|bXb"


def test_a_long_conversation_fits_the_budget() -> None:
    messages = [{"role": "user", "content": "x" * 1000}] * 2000
    assert len(ChatTemplate(CHATML).render(messages)) > 2_000_000


def test_user_text_is_not_a_template() -> None:
    message = {"role": "user", "content": "{{ 7 * 7 }}{% for x in y %}"}
    assert "{{ 7 * 7 }}{% for x in y %}" in ChatTemplate(CHATML).render([message])


def test_the_template_can_refuse() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RequestError, match="roles must alternate"):
        template.render(MESSAGES)


@pytest.mark.parametrize("message", ["hi", {}, {"content": "x"}, {"role": 3, "content": "x"}])
def test_messages_need_a_role(message: object) -> None:
    with pytest.raises(RequestError, match="message 0"):
        ChatTemplate(CHATML).render([message])  # type: ignore[list-item]


def test_missing_content_is_a_request_error() -> None:
    with pytest.raises(RequestError):
        ChatTemplate(CHATML).render([{"role": "user"}])


INVALID = ["{% for i in range(5) %}", "{{ " * 3000, "{{ " + "(" * 5000 + ")" * 5000 + " }}", "x" * (1 << 19)]
INVALID += ["{% for x in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}", "{{ 'x' | center(1000000000) }}"]


@pytest.mark.parametrize("source", INVALID)
def test_invalid_templates(source: str) -> None:
    with pytest.raises(ModelError):
        ChatTemplate(source)


DOUBLING = (
    "{% set ns = namespace(a=START) %}{% for i in range(60) %}{% set ns.a = STEP %}{% endfor %}{{ END }}"
)
HOSTILE = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(999) %}{% for j in 'a' * 99999 %}{% endfor %}{% endfor %}",
    "{{ 'a' * 1000000000 }}",
    "{{ [1] * 1000000000 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ 'x'.center(1000000000) }}",
    "{{ range(10 ** 9) | list | length }}",
    DOUBLING.replace("START", "'aaaa'").replace("STEP", "ns.a ~ ns.a").replace("END", "ns.a"),
    DOUBLING.replace("START", "'aaaa'").replace("STEP", "ns.a + ns.a").replace("END", "ns.a"),
    DOUBLING.replace("START", "[1]").replace("STEP", "[ns.a, ns.a]").replace("END", "ns.a"),
    DOUBLING.replace("START", "[1]").replace("STEP", "[ns.a, ns.a]").replace("END", "ns.a | tojson"),
    DOUBLING.replace("START", "[1]").replace("STEP", "[ns.a, ns.a]").replace("END", "ns.a | string | length"),
    "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(50) }}",
    "{% set x %}{{ 'a' * 1000000 }}{% endset %}{% for i in range(1000) %}{{ x }}{% endfor %}",
    "{{ ('a' * 1000000).replace('a', 'b' * 1000000) | length }}",
    "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) | length }}",
    "{{ ('a' * 10000) | map('upper') | join('x' * 100000) | length }}",
    "{{ ('x' * 1000).join(['y'] * 100000) | length }}",
    "{{ ('a\n' * 100000) | indent(256) | length }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{{ messages.__init__.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{{ lipsum(n=100000) }}",
]


@pytest.mark.parametrize("source", HOSTILE)
def test_hostile_templates_stop_early(source: str) -> None:
    start = time.monotonic()
    with pytest.raises(VGLMError):
        ChatTemplate(source).render(MESSAGES)
    assert time.monotonic() - start < 5
