"""Chat templates, rendered as transformers renders them (`apply_chat_template`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


class TemplateError(ValueError):
    """A template that is missing or broken, or that refuses the messages.

    `quotable` is the same without the template's words, which may be those of the messages.
    """

    def __init__(self, message: str, quotable: str | None = None) -> None:
        super().__init__(message)
        self.quotable = quotable or message


class ChatTemplate:
    """One model's chat template."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        try:
            self._template = _environment().from_string(source)
        except Exception as error:  # deep nesting is too much for Python's own compiler
            raise TemplateError(f"the model's chat template is broken: {error}") from error
        self._special_tokens = dict(special_tokens)
        self.knows_developer = "developer" in source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Write `messages` as the prompt that the model was trained on.

        `variables` are for the template alone; those in `RESERVED` are not taken from there.

        Raises:
            TemplateError: the template refuses these messages.
        """
        chat = [{k: v for k, v in message.items() if v is not None} for message in messages]
        try:
            return self._template.render(
                {
                    **(variables or {}),
                    "messages": chat,
                    "tools": None,
                    "documents": None,
                    "add_generation_prompt": add_generation_prompt,
                    **self._special_tokens,
                }
            )
        except jinja2.TemplateError as error:
            refused = "the chat template refuses them"
            raise TemplateError(f"{refused}: {error}", f"{refused}.") from error
        except Exception as error:  # whatever an expression of the template may raise
            raise TemplateError("the chat template cannot render them.") from error


def from_files(files: Mapping[str, bytes]) -> ChatTemplate | None:
    """Find the template among a tokenizer's files; None if the model has none.

    `chat_template.jinja` goes before the `chat_template` of tokenizer_config.json, which is one
    template or a list of named ones.

    Raises:
        TemplateError: a file that cannot be read.
    """
    config = tokenizer_config(files)
    if "chat_template.jinja" in files:
        source: object = files["chat_template.jinja"].decode()
    else:
        source = config.get("chat_template")
    if isinstance(source, list):
        named = [item for item in source if isinstance(item, dict)]
        source = next((item.get("template") for item in named if item.get("name") == "default"), "")
    if not isinstance(source, str) or not source:
        return None
    special = {name: _token_text(config.get(name)) for name in SPECIAL_TOKENS}
    return ChatTemplate(source, {name: text for name, text in special.items() if text is not None})


def tokenizer_config(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Read tokenizer_config.json; empty where there is none."""
    try:
        config = json.loads(files.get("tokenizer_config.json", b"{}"))
    except ValueError as error:
        raise TemplateError(f"tokenizer_config.json cannot be read: {error}.") from error
    if not isinstance(config, dict):
        raise TemplateError("tokenizer_config.json is not an object.")
    return config


def _token_text(token: object) -> str | None:
    """A special token is written as text, or as the fields of an AddedToken."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


class _GenerationTag(jinja2.ext.Extension):
    """Accepts `{% generation %}` blocks, which mark the assistant's words for training."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 reads it from the class)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja2's own filter this one leaves the characters of HTML alone."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


# Names that mean something in every template already.
RESERVED = frozenset(
    {
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        *SPECIAL_TOKENS,
        *_environment().globals,
    }
)
