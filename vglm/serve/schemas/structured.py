"""What an answer must look like: OpenAI's response_format, and vLLM's structured_outputs and older guided_* fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from vglm.serve.schemas.common import Body

JSONSchema = dict[str, Any]
Choices = Annotated[list[str], Field(min_length=1, max_length=4096)]


class TextFormat(Body):
    """Any text."""

    type: Literal["text"]


class JSONObjectFormat(Body):
    """A JSON object."""

    type: Literal["json_object"]


class NamedSchema(Body):
    """A JSON schema and what to call it."""

    name: str
    description: str | None = None
    schema_: JSONSchema | None = Field(default=None, alias="schema", description="Any object by default.")
    strict: bool | None = Field(default=None, description="The answer always fits, whatever it says.")


class JSONSchemaFormat(Body):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JSONObjectFormat | JSONSchemaFormat, Field(discriminator="type")]


class StructuredOutputsFields(Body):
    """One of: JSON that fits a schema, any JSON object, a regular expression, one of some texts, a Lark grammar."""

    json_: JSONSchema | str | None = Field(default=None, alias="json", description="A JSON schema.")
    json_object: bool | None = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None


class StructuredFields(Body):
    """What an answer must look like; at most one of these."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputsFields | None = None
    guided_json: JSONSchema | str | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
