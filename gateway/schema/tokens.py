"""POST /tokenize and /detokenize, in vLLM's shape."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from gateway.schema.chat import Message
from gateway.schema.common import Body, Text, TokenId


class TokenizeBody(Body):
    """Either a text or a conversation."""

    model: str = "default"
    prompt: Text | None = None
    messages: list[Message] | None = Field(None, min_length=1)
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] = Field({})
    return_token_strs: bool = False


class DetokenizeBody(Body):
    """Tokens to be written as text."""

    model: str = "default"
    tokens: list[TokenId]
