"""POST /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field

from gateway.model import ServedModel
from gateway.schema.common import (
    DEFAULT_MAX_TOKENS,
    NEEDS_STREAM,
    GenerationBody,
    check_ids,
    check_top_logprobs,
)
from gateway.schema.fields import NoText, Off, One, Text, TokenId, TopLogprobs

MAX_PROMPTS = 128

Tokens = Annotated[list[TokenId], Field(min_length=1)]
Prompts = Annotated[list[Text | Tokens], Field(min_length=1, max_length=MAX_PROMPTS)]


def _prompts(value: Any) -> Any:
    """One prompt, as text or token ids, is a list of one."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value and all(type(item) in (int, float) for item in value):
        return [value]
    return value


class CompletionBody(GenerationBody):
    """Texts to be continued as they are."""

    model_config = ConfigDict(json_schema_extra={"allOf": [NEEDS_STREAM]})

    prompt: Annotated[
        Prompts, BeforeValidator(_prompts, json_schema_input_type=Text | Tokens | Prompts)
    ]
    """Texts or lists of token ids, one or several. An empty text can only be continued where the
    model's tokenizer begins texts with a token of its own."""
    logprobs: TopLogprobs | None = None
    best_of: One = 1
    echo: Off = False
    suffix: NoText = ""

    def check(self, model: ServedModel) -> None:
        super().check(model)
        check_top_logprobs("logprobs", self.logprobs or 0, model)
        for prompt in self.prompt:
            if not isinstance(prompt, str):
                check_ids("prompt", prompt, model)

    @property
    def limit(self) -> int:
        return self.max_tokens or DEFAULT_MAX_TOKENS
