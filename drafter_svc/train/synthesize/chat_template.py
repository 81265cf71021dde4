"""The target's chat template, used from both sides: its answers, and its user's turns."""

import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerFast

Message = dict[str, str]

# Stands for the text of a user turn; no template changes letters.
_MARK = "HOLDCOURSEUSERTURN"


class Chat:
    """Prompts, as token ids, after which the target writes the next turn of a conversation.

    Raises ``ValueError`` with one sentence where the target has no chat template.
    """

    def __init__(self, files: Mapping[str, bytes], name: str, end_tokens: Sequence[int]) -> None:
        """Read the tokenizer files that a verifier sends."""
        with tempfile.TemporaryDirectory() as folder:
            for file, data in files.items():
                (Path(folder) / Path(file).name).write_bytes(data)
            self._tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(folder)
        self._name = name
        if not self._tokenizer.chat_template:
            raise ValueError(
                f"target: {name} has no chat template and can write no conversations; "
                'train it on plain documents ({"text": ...}) instead'
            )
        self._end_tokens = frozenset(end_tokens)
        self._special = frozenset(self._tokenizer.all_special_ids)

    def check_user_turns(self, turns: int) -> frozenset[int]:
        """The tokens that end a user turn.

        Raises ``ValueError`` where the target cannot write user turns, or not ``turns`` of them.
        """
        _, tail = self._around_user_turn([])
        ids = self._tokenizer(tail.lstrip(), add_special_tokens=False).input_ids
        if not ids or ids[0] not in self._special | self._end_tokens:
            raise ValueError(
                f"target: the chat template of {self._name} ends a user turn with no special "
                "token, so the target cannot write user turns; give prompts, count 0 and turns 1"
            )
        if turns > 1:
            messages = [{"role": r, "content": _MARK} for r in ("user", "assistant", "user")]
            parts = [self._render(messages[: n + 1], False) for n in range(3)]
            parts.insert(1, self._render(messages[:1], True))
            if not all(b.startswith(a) for a, b in pairwise(parts)):
                raise ValueError(
                    f"target: the chat template of {self._name} rewrites earlier turns; "
                    "set turns to 1"
                )
        return frozenset({ids[0]})

    def user_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The conversation so far and the empty turn of the user."""
        head, _ = self._around_user_turn(messages)
        # A space before a word is part of the word's token.
        ids: list[int] = self._tokenizer(head.rstrip(" "), add_special_tokens=False).input_ids
        return ids

    def answer_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The conversation so far, and what comes before an answer."""
        text = self._render(messages, True)
        ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def text(self, ids: Sequence[int]) -> str | None:
        """The text of a turn without its end token; None if it has other special tokens."""
        kept = list(ids[:-1]) if ids and ids[-1] in self._special | self._end_tokens else list(ids)
        if self._special.intersection(kept):
            return None
        text: str = self._tokenizer.decode(kept, clean_up_tokenization_spaces=False)
        return text.strip()

    def _around_user_turn(self, messages: Sequence[Message]) -> tuple[str, str]:
        text = self._render([*messages, {"role": "user", "content": _MARK}], False)
        if text.count(_MARK) != 1:
            raise ValueError(f"target: the chat template of {self._name} has no user turn")
        head, _, tail = text.partition(_MARK)
        return head, tail

    def _render(self, messages: Sequence[Message], prompt: bool) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=prompt
            )
        except jinja2.TemplateError as error:
            raise ValueError(
                f"target: the chat template of {self._name} refuses the conversation: {error}"
            ) from None
        return text
