"""POST /v1/completions."""

from __future__ import annotations

from typing import Annotated, cast

from pydantic import ConfigDict, Discriminator, Field, Tag

from gateway.backends.served_model import ServedModel
from gateway.schema.common import (
    DEFAULT_MAX_TOKENS,
    NEEDS_STREAM,
    GenerationBody,
    check_ids,
    check_top_logprobs,
)
from gateway.schema.fields import NoText, Off, One, Text, Tokens, TopLogprobs, by_type

MAX_PROMPTS = 128

Prompts = Annotated[
    list[
        Annotated[
            Annotated[Text, Tag("str")] | Annotated[Tokens, Tag("list")],
            by_type("a string or a list of token ids", str, list),
        ]
    ],
    Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True),
]


def _form(value: object) -> str | None:
    """Whether a prompt is a text, several prompts, or the tokens of one."""
    if isinstance(value, list):
        return "several" if not value or isinstance(value[0], (str, list)) else "tokens"
    return "text" if isinstance(value, str) else None


Prompt = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[Tokens, Tag("tokens")]
    | Annotated[Prompts, Tag("several")],
    Discriminator(
        _form,
        custom_error_type="wrong_type",
        custom_error_message="must be a string, a list of token ids, or a list of such",
    ),
]


class CompletionBody(GenerationBody):
    """Texts to be continued as they are."""

    model_config = ConfigDict(json_schema_extra={"allOf": [NEEDS_STREAM]})

    prompt: Prompt
    """Texts or lists of token ids, one or several. An empty text can only be continued where the
    model's tokenizer begins texts with a token of its own."""
    logprobs: TopLogprobs | None = None
    best_of: One = 1
    echo: Off = False
    suffix: NoText = ""

    def check(self, model: ServedModel) -> None:
        super().check(model)
        check_top_logprobs("logprobs", self.logprobs or 0, model)
        for prompt in self.prompts:
            if not isinstance(prompt, str):
                check_ids("prompt", prompt, model)

    @property
    def prompts(self) -> list[str | list[int]]:
        several = self.prompt if _form(self.prompt) == "several" else [self.prompt]
        return cast("list[str | list[int]]", several)

    @property
    def limit(self) -> int:
        return self.max_tokens or DEFAULT_MAX_TOKENS
