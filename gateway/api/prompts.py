"""From what a client sent to the tokens of the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.backends.served_model import ServedModel
from gateway.errors import MAX_REASON, invalid, shown
from gateway.offload import aside
from gateway.schema.chat import Message
from specserve.chat_template import TemplateError


async def chat_prompt(
    model: ServedModel,
    messages: Sequence[Message],
    variables: Mapping[str, Any],
    *,
    size: int,
    add_generation_prompt: bool = True,
    add_special_tokens: bool = False,
) -> list[int]:
    """Render a conversation and tokenize it. The template writes the special tokens itself.

    `size` is that of the request's body in bytes.

    Raises:
        ApiError: 400, the model has no template, its template refuses the messages, or what it
            wrote of the variables is no text.
    """
    text = await aside(size, _render, model, messages, variables, add_generation_prompt)
    [tokens] = await model.tokenizer.encode([text], add_special_tokens=add_special_tokens)
    return tokens


async def text_prompts(model: ServedModel, prompts: Sequence[str | list[int]]) -> list[list[int]]:
    """Tokenize texts with the special tokens that the model expects around them.

    Raises:
        ApiError: 400, nothing is left to continue.
    """
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    encoded = iter(await model.tokenizer.encode(texts, add_special_tokens=True))
    tokens = [next(encoded) if isinstance(prompt, str) else prompt for prompt in prompts]
    if not all(tokens):
        raise invalid("prompt", "an empty prompt cannot be continued.")
    return tokens


def _render(
    model: ServedModel,
    messages: Sequence[Message],
    variables: Mapping[str, Any],
    add_generation_prompt: bool,
) -> str:
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
        message = shown(str(error), MAX_REASON)
        raise invalid("messages", message, reason=f"messages: {error.quotable}") from error
    try:
        text.encode()
    except UnicodeEncodeError:
        # The messages have been checked.
        raise invalid("chat_template_kwargs", "a lone surrogate is not text.") from None
    return text
