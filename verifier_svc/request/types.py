"""What the engine is asked for and what it answers, as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from specwire.messages import DraftSource
from verifier_svc.request.documents import EndOfRequests, FeatureRows


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; see the message `Sampling` for limits and units."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop_token_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    max_tokens: int = 1
    ignore_eos: bool = False
    top_logprobs: int | None = None

    @property
    def plain_scores(self) -> bool:
        """Whether logits are drawn from as they are, up to the temperature."""
        return not (
            self.logit_bias
            or self.min_tokens
            or self.presence_penalty
            or self.frequency_penalty
            or self.repetition_penalty != 1.0
        )

    def truncates(self, vocab: int) -> bool:
        """Whether unlikely tokens of so many are left out of the draw."""
        limited = 0 < self.top_k < vocab or self.top_p < 1 or self.min_p > 0
        return limited and self.temperature > 0

    def plain_race(self, vocab: int) -> bool:
        """Whether every token may be drawn, by its score as it is over the temperature."""
        return self.temperature > 0 and self.plain_scores and not self.truncates(vocab)

    @property
    def plain_greedy(self) -> bool:
        """Whether only the argmax of each row is needed."""
        return self.temperature == 0 and self.plain_scores and self.top_logprobs is None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One request: `tokens[output_start:]` is output that exists already."""

    request_id: str
    tokens: tuple[int, ...]
    output_start: int
    sampling: Sampling
    max_draft_tokens: int = 0
    choice_index: int = 0
    cache_salt: str = ""


class FinishReason(Enum):
    """Why a generation ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of one token: its own, and the best `(token, logprob)` pairs of its position."""

    drawn: float
    top: tuple[tuple[int, float], ...]


class RoundOutput(NamedTuple):
    """The tokens of one round, the first at absolute index `start`."""

    start: int
    tokens: tuple[int, ...]
    drafted: int = 0
    accepted: int = 0
    source: DraftSource = DraftSource.CHAIN
    logprobs: tuple[Logprobs, ...] = ()


@dataclass(slots=True)
class Usage:
    """Counts of one generation; lists are by position in the draft, of all and of lookups."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_prompt_tokens: int = 0
    # Verifications by source, length of the draft, and how much of it was accepted.
    _counts: Counter[tuple[DraftSource, int, int]] = field(default_factory=Counter)

    def count_round(self, source: DraftSource, proposed: int, accepted: int) -> None:
        """Count one verification and its draft."""
        self._counts[source, proposed, accepted] += 1

    @property
    def rounds(self) -> int:
        """Verifications."""
        return self._counts.total()

    @property
    def drafted_rounds(self) -> int:
        """Those that had a draft."""
        return sum(n for (_, proposed, _), n in self._counts.items() if proposed)

    @property
    def accepted_draft_tokens(self) -> int:
        """Draft tokens accepted."""
        return sum(n * accepted for (*_, accepted), n in self._counts.items())

    @property
    def rejected_draft_tokens(self) -> int:
        """Draft tokens not accepted."""
        return sum(n * (proposed - accepted) for (_, proposed, accepted), n in self._counts.items())

    @property
    def proposed_at(self) -> list[int]:
        """Drafts that had the position."""
        return self._reached(lambda proposed, _: proposed)

    @property
    def accepted_at(self) -> list[int]:
        """Drafts that were accepted so far."""
        return self._reached(lambda _, accepted: accepted)

    @property
    def lookup_proposed_at(self) -> list[int]:
        """Lookups that had the position."""
        return self._reached(lambda proposed, _: proposed, lookups=True)

    @property
    def lookup_accepted_at(self) -> list[int]:
        """Lookups that were accepted so far."""
        return self._reached(lambda _, accepted: accepted, lookups=True)

    def _reached(self, reach: Callable[[int, int], int], *, lookups: bool = False) -> list[int]:
        """By position, how many drafts, or lookups alone, reached so far."""
        wanted = [DraftSource.LOOKUP] if lookups else list(DraftSource)
        counts = {key: n for key, n in self._counts.items() if key[0] in wanted}
        reached = [0] * max((proposed for _, proposed, _ in counts), default=0)
        for (_, proposed, accepted), n in counts.items():
            for position in range(reach(proposed, accepted)):
                reached[position] += n
        return reached


@dataclass(slots=True)
class Timings:
    """Where the time of a generation went, in seconds; see the message `Timings`."""

    queue: float = 0.0
    prefill: float = 0.0
    target: float = 0.0
    draw: float = 0.0
    drafter: float = 0.0
    drafter_queue: float = 0.0
    wire: float = 0.0
    host: float = 0.0

    @property
    def accounted(self) -> float:
        """What of the time after the first token has a part to it."""
        return self.target + self.draw + self.drafter + self.drafter_queue + self.wire


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a generation."""

    reason: FinishReason
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of a generation that could not go on; one sentence says why.

    `elsewhere`: another engine may do better. Otherwise the request itself is the cause.
    """

    reason: str
    elsewhere: bool = True


Event = RoundOutput | Finished | Failed | FeatureRows | EndOfRequests
