"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from gateway.errors import invalid
from gateway.model import ServedModel
from gateway.schema.common import Body, GenerationBody, Text, check_top_logprobs


def _refuse(items: list[Any]) -> list[Any]:
    if items:
        raise ValueError("not supported")
    return items


Empty = Annotated[list[Any], AfterValidator(_refuse)]


class TextPart(Body):
    """A piece of a message. Only text can be served."""

    type: Literal["text"]
    text: Text


class Message(Body):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: Text | None = None
    # Clients send back what they were given; these were empty.
    annotations: Empty = Field([])
    tool_calls: Empty = Field([])

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class ResponseFormat(Body):
    """The shape of the answer. Only free text can be served."""

    type: Literal["text"]


class ChatBody(GenerationBody):
    """A conversation to be continued."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0)
    chat_template_kwargs: dict[str, Any] = Field({})
    response_format: ResponseFormat | None = None
    tools: Empty = Field([])
    tool_choice: Literal["none", "auto"] = "auto"
    # Accepted and without effect on the output.
    modalities: list[Literal["text"]] | None = None
    parallel_tool_calls: bool | None = None
    store: Literal[False] = False

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
