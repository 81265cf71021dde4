"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, Tag, WithJsonSchema, model_validator
from pydantic.config import JsonDict

from gateway.backends.served_model import ServedModel
from gateway.errors import invalid
from gateway.schema.body import Body
from gateway.schema.common import NEEDS_STREAM, GenerationBody, check_top_logprobs
from gateway.schema.fields import Empty, Off, Positive, Text, TopLogprobs, by_type, needs
from specserve.chat_template import RESERVED

# Of a conversation, and texts of a message.
MAX_MESSAGES = 16_384
# Of the chat template.
MAX_VARIABLES = 64

_VARIABLES = {
    "type": "object",
    "maxProperties": MAX_VARIABLES,
    "propertyNames": {"not": {"enum": sorted(RESERVED)}},
}
_NEEDS_CONTENT: JsonDict = {
    "required": ["role"],
    "if": {"properties": {"role": {"not": {"const": "assistant"}}}},
    "then": {"required": ["content"], "properties": {"content": {"not": {"type": "null"}}}},
}


def _free(variables: dict[str, Any]) -> dict[str, Any]:
    if taken := sorted(RESERVED.intersection(variables)):
        raise ValueError(f"the name {taken[0]} is reserved")
    return variables


Variables = Annotated[
    dict[str, Any],
    Field(max_length=MAX_VARIABLES, fail_fast=True),
    AfterValidator(_free),
    WithJsonSchema(_VARIABLES),
]


class TextPart(Body):
    """A piece of a message. Only text can be served."""

    type: Literal["text"]
    text: Text


class Message(Body):
    """One turn of the conversation."""

    model_config = ConfigDict(json_schema_extra=_NEEDS_CONTENT)

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[Text, Tag("str")]
        | Annotated[list[TextPart], Field(max_length=MAX_MESSAGES, fail_fast=True), Tag("list")],
        by_type("a string or a list of parts", str, list),
    ]
    """An assistant that said nothing may leave it out."""
    name: Text | None = None
    # Clients send back what they were given; these were empty.
    annotations: Empty = Field([])
    tool_calls: Empty = Field([])

    @model_validator(mode="before")
    @classmethod
    def _say_nothing(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("role") == "assistant":
            return value if value.get("content") is not None else {**value, "content": ""}
        return value

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


class ResponseFormat(Body):
    """The shape of the answer. Only free text can be served."""

    type: Literal["text"]


class ChatBody(GenerationBody):
    """A conversation to be continued."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [
                NEEDS_STREAM,
                needs("top_logprobs", {"type": "integer", "minimum": 1}, "logprobs"),
            ]
        }
    )

    messages: Messages
    max_completion_tokens: Positive | None = None
    """Another name of `max_tokens`."""
    logprobs: bool = False
    top_logprobs: TopLogprobs = 0
    """Only with `logprobs`."""
    chat_template_kwargs: Variables = Field({})
    """Further variables of the model's chat template."""
    response_format: ResponseFormat | None = None
    tools: Empty = Field([])
    tool_choice: Literal["none", "auto"] = "auto"
    # Accepted and without effect on the output.
    modalities: list[Literal["text"]] | None = Field(None, max_length=1, fail_fast=True)
    parallel_tool_calls: bool | None = None
    store: Off = False

    def check(self, model: ServedModel) -> None:
        super().check(model)
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs", "only with logprobs set to true.")
        check_top_logprobs("top_logprobs", self.top_logprobs, model)
        if self.max_tokens and self.max_completion_tokens not in (None, self.max_tokens):
            raise invalid("max_tokens", "differs from max_completion_tokens; give one of them.")

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens
