"""How the target writes one conversation."""

import random
from collections.abc import Awaitable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Protocol

from drafter_svc.train.synthesize.chat_template import Chat, Message
from drafter_svc.train.synthesize.dedup import loop_share
from drafter_svc.train.synthesize.prompt_sources import Prompt
from drafter_svc.train.synthesize.settings import SynthesizeSettings

# A turn with less room in the context than this is not begun.
_LEAST_ROOM = 32
# Multiples of it, modulo 1, lie evenly however many there are.
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class Wish:
    """A turn to be written after ``tokens``, ended by the model's end tokens or ``stop``."""

    tokens: list[int]
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Turn:
    """What was written, its end token included; ``ended`` is False where it was cut off."""

    tokens: list[int]
    ended: bool


class Generate(Protocol):
    """Lets the target write."""

    def __call__(self, wish: Wish) -> Awaitable[Turn]: ...


@dataclass(slots=True)
class Outcome:
    """A record, or why there is none; ``cut`` is why its last turns are missing."""

    record: dict[str, Any] | None = None
    dropped: str = ""
    cut: str = ""
    user_tokens: int = 0
    answer_tokens: int = 0


class _BadTurn(Exception):
    """A turn that is not kept; the message is the reason that is counted."""


def temperature_of(index: int) -> float:
    """The temperature of the answers of conversation ``index``: evenly spread over [0, 1]."""
    return round(index * _GOLDEN % 1, 2)


def seed_of(seed: int, *parts: object) -> int:
    """64 bits that depend on everything that is named."""
    text = ":".join(map(str, (seed, *parts)))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


@dataclass(slots=True)
class Writer:
    """Writes conversations; what becomes of one depends on its index and prompt alone."""

    chat: Chat
    generate: Generate
    settings: SynthesizeSettings
    max_model_len: int
    fingerprint: str
    user_ends: frozenset[int] = field(default_factory=frozenset)

    async def write(self, index: int, prompt: Prompt) -> Outcome:
        """Write up to ``turns`` turns; a bad one ends the conversation before it."""
        most = self.settings.turns
        own = random.Random(seed_of(self.settings.seed, index, "turns"))
        turns = own.randint(max(1, min(len(prompt.turns), most)), most)
        messages: list[Message] = list(prompt.system)
        kept, finish, outcome = len(messages), "", Outcome()
        for turn in range(turns):
            try:
                messages.append(await self._ask(index, turn, prompt, messages, outcome))
                answer, ended = await self._answer(index, turn, messages, outcome)
            except _BadTurn as bad:
                outcome.cut = str(bad)
                break
            messages.append(answer)
            kept, finish = len(messages), "stop" if ended else "length"
            if not ended:
                break
        if not finish:
            outcome.dropped, outcome.cut = outcome.cut, ""
            return outcome
        outcome.record = {
            "messages": messages[:kept],
            "finish_reason": finish,
            "temperature": temperature_of(index),
            "source": prompt.source,
            "target": self.fingerprint,
        }
        return outcome

    async def _ask(
        self, index: int, turn: int, prompt: Prompt, messages: list[Message], outcome: Outcome
    ) -> Message:
        """The user's turn: what is given, or what the target writes in its place."""
        if turn < len(prompt.turns):
            return {"role": "user", "content": prompt.turns[turn]}
        settings = self.settings
        tokens = self._prompt(self.chat.user_prompt, messages)
        written = await self.generate(
            Wish(
                tokens,
                min(settings.max_user_tokens, self.max_model_len - len(tokens)),
                settings.user_temperature,
                settings.user_top_p,
                seed_of(settings.seed, index, turn, "user"),
                self.user_ends,
            )
        )
        if not written.ended:
            raise _BadTurn("user turn without end")
        text = self._text(written, "user turn")
        outcome.user_tokens += len(written.tokens)
        return {"role": "user", "content": text}

    async def _answer(
        self, index: int, turn: int, messages: list[Message], outcome: Outcome
    ) -> tuple[Message, bool]:
        settings = self.settings
        tokens = self._prompt(self.chat.answer_prompt, messages)
        written = await self.generate(
            Wish(
                tokens,
                min(settings.max_answer_tokens, self.max_model_len - len(tokens)),
                temperature_of(index),
                1.0,
                seed_of(settings.seed, index, turn, "assistant"),
            )
        )
        text = self._text(written, "answer")
        outcome.answer_tokens += len(written.tokens)
        return {"role": "assistant", "content": text}, written.ended

    def _prompt(self, render: Any, messages: list[Message]) -> list[int]:
        try:
            tokens: list[int] = render(messages)
        except ValueError:
            raise _BadTurn("refused by the chat template") from None
        if len(tokens) + _LEAST_ROOM > self.max_model_len:
            raise _BadTurn("no room in the context")
        return tokens

    def _text(self, written: Turn, what: str) -> str:
        """The text of a turn that is good enough. Raises ``_BadTurn``."""
        text = self.chat.text(written.tokens)
        if text is None:
            raise _BadTurn(f"{what} with special tokens")
        if not text:
            raise _BadTurn(f"empty {what}")
        if loop_share(written.tokens) > self.settings.max_loop_share:
            raise _BadTurn(f"{what} that loops")
        return text
