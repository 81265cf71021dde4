"""POST /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from gateway.model import ServedModel
from gateway.schema.common import GenerationBody, Text, TokenId, check_ids, check_top_logprobs

# As OpenAI's, for a request that names no limit.
DEFAULT_MAX_TOKENS = 16
MAX_PROMPTS = 128

Prompt = str | list[int]


def _prompts(value: Any) -> Any:
    """One prompt, as text or token ids, is a list of one."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return [value]
    return value


class CompletionBody(GenerationBody):
    """Texts to be continued as they are."""

    prompt: Annotated[
        list[Text | Annotated[list[TokenId], Field(min_length=1)]],
        BeforeValidator(_prompts),
        Field(min_length=1, max_length=MAX_PROMPTS),
    ]
    logprobs: int | None = Field(None, ge=0)
    best_of: Literal[1] = 1
    echo: Literal[False] = False
    suffix: Literal[""] = ""

    def check(self, model: ServedModel) -> None:
        super().check(model)
        check_top_logprobs("logprobs", self.logprobs or 0, model)
        for prompt in self.prompt:
            if not isinstance(prompt, str):
                check_ids("prompt", prompt, model)

    @property
    def limit(self) -> int:
        return self.max_tokens or DEFAULT_MAX_TOKENS
