"""From what a client sent to the tokens of the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.errors import invalid
from gateway.model import ServedModel
from gateway.schema.chat import Message
from specwire.template import TemplateError


async def chat_prompt(
    model: ServedModel,
    messages: Sequence[Message],
    variables: Mapping[str, Any],
    *,
    add_generation_prompt: bool = True,
    add_special_tokens: bool = False,
) -> list[int]:
    """Render a conversation and tokenize it. The template writes the special tokens itself.

    Raises:
        ApiError: 400, the model has no template, its template refuses the messages, or what it
            wrote of the variables is no text.
    """
    if model.template is None:
        raise invalid("messages", "this model has no chat template; use /v1/completions.")
    roles = {} if model.template.knows_developer else {"developer": "system"}
    chat = [
        {"role": roles.get(message.role, message.role), "content": message.text}
        | ({"name": message.name} if message.name else {})
        for message in messages
    ]
    try:
        text = model.template.render(
            chat, add_generation_prompt=add_generation_prompt, variables=variables
        )
    except TemplateError as error:
        raise invalid("messages", str(error), reason=f"messages: {error.quotable}") from error
    try:
        text.encode()
    except UnicodeEncodeError:
        # The messages have been checked.
        raise invalid("chat_template_kwargs", "a lone surrogate is not text.") from None
    return await model.tokenizer.encode(text, add_special_tokens=add_special_tokens)


async def text_prompt(model: ServedModel, prompt: str | list[int]) -> list[int]:
    """Tokenize a text with the special tokens that the model expects around it.

    Raises:
        ApiError: 400, nothing is left to continue.
    """
    if not isinstance(prompt, str):
        return prompt
    ids = await model.tokenizer.encode(prompt, add_special_tokens=True)
    if not ids:
        raise invalid("prompt", "an empty prompt cannot be continued.")
    return ids
