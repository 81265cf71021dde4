"""Ways to serve the same prompts that must all give the same text, and what they gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtests.common.client import Client, OnTokens
from loadtests.common.compare import Divergence, divergences, equal, first_difference
from loadtests.common.prompts import Prompt
from loadtests.common.result import RequestFailed, Result
from loadtests.peers.transformers_peer import TransformersPeer

Speculation = bool | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Mode:
    """How requests are made: their `speculation`, and how many at once."""

    name: str
    speculation: Speculation
    concurrency: int = 1


MODES = (
    Mode("off", False),
    *(Mode(f"draft length {n}", {"max_draft_tokens": n}) for n in (1, 3, 5, 8)),
    Mode("8 at once", True, 8),
)
KILLED = Mode("drafter killed", True)


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt, its tokens with the chat template, and how its output ends."""

    prompt: Prompt
    tokens: Sequence[int]
    max_tokens: int
    ignore_eos: bool = False


@dataclass(slots=True)
class Case:
    """What is asked and the reference's answer; outputs that differ are scored once each."""

    ask: Ask
    reference: Result
    scored: dict[tuple[tuple[int, ...], str], list[Divergence]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Output:
    """An answer of the served model in one mode."""

    mode: Mode
    case: Case
    answer: Result | RequestFailed

    @property
    def differs(self) -> bool:
        return isinstance(self.answer, Result) and not equal(self.answer, self.case.reference)

    @property
    def divergences(self) -> list[Divergence]:
        """Empty where the output is the reference's; known after `score` where it is not."""
        if not self.differs:
            return []
        assert isinstance(self.answer, Result)
        return self.case.scored[self.answer.tokens, self.answer.finish_reason]

    async def score(self, peer: TransformersPeer, limit: float) -> None:
        """Have the target judge an output that differs; a gap under `limit` is a near-tie."""
        assert isinstance(self.answer, Result)
        case, answer = self.case, self.answer
        key = answer.tokens, answer.finish_reason
        if key in case.scored:
            return
        first = first_difference(answer.tokens, case.reference.tokens)
        prompt = case.ask.tokens
        case.scored[key] = divergences(
            case.ask.prompt.name,
            len(answer.tokens) if first is None else first,
            await peer.score(prompt, answer.tokens, answer.finish_reason == "stop"),
            await peer.score(prompt, case.reference.tokens, case.reference.finish_reason == "stop"),
            limit,
        )


async def ask_server(
    client: Client, ask: Ask, speculation: Speculation, on_tokens: OnTokens | None = None
) -> Result | RequestFailed:
    """Ask greedily; a failed request is an answer too."""
    try:
        return await client.chat(
            ask.prompt.text,
            max_tokens=ask.max_tokens,
            speculation=speculation,
            ignore_eos=ask.ignore_eos,
            on_tokens=on_tokens,
        )
    except RequestFailed as error:
        return error
