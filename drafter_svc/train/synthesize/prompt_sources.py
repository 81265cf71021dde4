"""Prompts that others wrote: files of JSON lines and Hugging Face data sets, read at random."""

import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from drafter_svc.train.synthesize.chat_template import Message


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is given of a conversation: perhaps a system message, and user turns."""

    source: str
    system: tuple[Message, ...] = ()
    turns: tuple[str, ...] = ()


class PromptSet(Protocol):
    """Prompts of one origin. Getting one raises ``ValueError`` if it is none."""

    name: str

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Prompt: ...


def parse_prompt(row: Any, source: str) -> Prompt:
    """Take the user's side of a row; answers in it are left out.

    Raises ``ValueError`` saying what the row lacks.
    """
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object")
    messages = row.get("messages")
    if isinstance(row.get("prompt"), list):
        messages = row["prompt"]
    if messages is not None:
        return _parse_messages(messages, source)
    turns = row.get("turns", row.get("prompt", row.get("question")))
    if turns is None:
        raise ValueError('it has no "prompt", "question", "turns" or "messages"')
    turns = [turns] if isinstance(turns, str) else turns
    if not isinstance(turns, list) or not all(isinstance(t, str) and t.strip() for t in turns):
        raise ValueError("its user turns are no texts")
    if not turns:
        raise ValueError("it has no user turn")
    return Prompt(source, (), tuple(turn.strip() for turn in turns))


def _parse_messages(messages: Any, source: str) -> Prompt:
    try:
        pairs = [(message["role"], message["content"]) for message in messages]
    except (KeyError, TypeError):
        raise ValueError('its messages lack "role" or "content"') from None
    system = tuple({"role": r, "content": c} for r, c in pairs[:1] if r == "system")
    turns = tuple(content for role, content in pairs if role == "user")
    if not all(isinstance(content, str) for _, content in pairs):
        raise ValueError("its messages are no texts")
    if not turns or not all(turn.strip() for turn in turns):
        raise ValueError("it has no user turn, or an empty one")
    return Prompt(source, system, tuple(turn.strip() for turn in turns))


class PromptFile:
    """A file of JSON lines; only where each line begins is kept in memory.

    Raises ``ValueError`` naming the line that is no prompt.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self.name = self._path.name
        self._starts = array("Q")
        with self._path.open("rb") as lines:
            start = 0
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    self._parse(line, f"{path}:{number}")
                    self._starts.append(start)
                start += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Prompt:
        with self._path.open("rb") as lines:
            lines.seek(self._starts[index])
            return self._parse(lines.readline(), self.name)

    def _parse(self, line: bytes, where: str) -> Prompt:
        try:
            return parse_prompt(json.loads(line), self.name)
        except ValueError as error:
            reason = "it is not JSON" if isinstance(error, json.JSONDecodeError | UnicodeError) \
                else str(error)  # fmt: skip
            raise ValueError(f"{where} is no prompt: {reason}") from None


class PromptDataset:
    """A Hugging Face data set ID[[:CONFIG]:SPLIT], the split "train" if none is named.

    Raises ``ValueError`` where it cannot be loaded.
    """

    def __init__(self, text: str) -> None:
        try:
            import datasets
        except ImportError:
            raise ValueError(
                f"prompts: there is no file {text}, and a data set needs the datasets library; "
                "pip install datasets"
            ) from None
        self.name, *rest = text.split(":")
        if len(rest) > 2:
            raise ValueError(f"prompts: {text} is not ID[[:CONFIG]:SPLIT]")
        split = rest[-1] if rest else "train"
        config = rest[0] if len(rest) == 2 else None
        try:
            self._rows: Any = datasets.load_dataset(self.name, config, split=split)
        except Exception as error:  # the library raises many kinds
            sentence = str(error).strip().partition("\n")[0]
            raise ValueError(f"prompts: {text} cannot be loaded: {sentence}") from None
        if len(self._rows):
            try:
                self[0]
            except ValueError as error:
                raise ValueError(f"prompts: {text} has no prompts: {error}") from None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Prompt:
        return parse_prompt(self._rows[index], self.name)


def open_prompts(text: str) -> PromptSet:
    """Open what a user named.

    Raises ``ValueError`` where it is not there or holds no prompts.
    """
    looks_like_file = text.startswith((".", "/", "~")) or text.endswith((".jsonl", ".json"))
    path = Path(text).expanduser()
    if path.is_file() or looks_like_file:
        if not path.is_file():
            raise ValueError(f"prompts: there is no file {text}")
        opened: PromptSet = PromptFile(str(path))
    else:
        opened = PromptDataset(text)
    if not len(opened):
        raise ValueError(f"prompts: {text} is empty")
    return opened


class Plan:
    """Which prompt conversation 0, 1, 2, ... begins with; those of one's own lie evenly between."""

    def __init__(self, own: int, sets: Sequence[PromptSet]) -> None:
        self._sets = sets
        self._given = sum(map(len, sets))
        self._total = own + self._given

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, index: int) -> Prompt:
        """The prompt, without any turn where the target begins. Raises ``ValueError``."""
        at = index * self._given // self._total
        if (index + 1) * self._given // self._total == at:
            return Prompt("self")
        for prompts in self._sets:
            if at < len(prompts):
                return prompts[at]
            at -= len(prompts)
        raise IndexError(index)

    def sources(self) -> Iterator[tuple[str, int]]:
        """Names and sizes of what is mixed in."""
        return ((prompts.name, len(prompts)) for prompts in self._sets)
