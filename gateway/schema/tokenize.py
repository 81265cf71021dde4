"""POST /tokenize and /detokenize, in vLLM's shape."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from gateway.schema.body import Body
from gateway.schema.chat import Messages, Variables
from gateway.schema.fields import MAX_PROMPT, Text, TokenId


def _only(field: str) -> dict[str, Any]:
    other = "messages" if field == "prompt" else "prompt"
    given, absent = {"not": {"type": "null"}}, {"type": "null"}
    return {"required": [field], "properties": {field: given, other: absent}}


class TokenizeBody(Body):
    """Either a text or a conversation."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [_only("prompt"), _only("messages")]})

    model: str = "default"
    prompt: Text | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: Variables = Field({})
    return_token_strs: bool = False


class DetokenizeBody(Body):
    """Tokens to be written as text."""

    model: str = "default"
    tokens: list[TokenId] = Field(max_length=MAX_PROMPT, fail_fast=True)
