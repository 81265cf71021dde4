"""Prompts from a file of JSON lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from specserve.settings import StartError


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation's user turns; `name` says which one it is to people."""

    name: str
    turns: tuple[str, ...]

    @property
    def text(self) -> str:
        """The first turn."""
        return self.turns[0]


def load_prompts(path: str, limit: int | None = None) -> list[Prompt]:
    """Read the first `limit` prompts: one object a line, `turns` a list of user messages.

    `question_id`, where there is one, is the prompt's name; other fields are not looked at.

    Raises:
        StartError: no such file, no prompt in it, or a line that is not a prompt.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise StartError(f"--prompts: {path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise StartError(f"--prompts: {path} is not text in UTF-8.") from None
    prompts: list[Prompt] = []
    for number, line in enumerate(lines, start=1):
        if len(prompts) == limit:
            break
        if line.strip():
            prompts.append(_parse(line, number, f"--prompts: line {number} of {path}"))
    if not prompts:
        raise StartError(f"--prompts: {path} holds no prompt.")
    return prompts


def _parse(line: str, number: int, where: str) -> Prompt:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise StartError(f"{where} is not JSON: {error.msg}.") from None
    turns = value.get("turns") if isinstance(value, dict) else None
    if not (isinstance(turns, list) and turns and all(isinstance(t, str) and t for t in turns)):
        raise StartError(f"{where} has no `turns`, a list of user messages that are not empty.")
    return Prompt(str(value.get("question_id", number)), tuple(turns))
