"""What the two ends say to each other about drafts, as plain values.

Let the committed tokens be x_0 .. x_{L-1}. Entry i of a sequence is the pair (feature of
position i, token x_{i+1}); entries 0 .. L-2 are real, so a complete sequence has L - 1 of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol, TypeVar

from specwire.limits import MAX_ROUND_BYTES

Features = TypeVar("Features", contravariant=True)


@dataclass(frozen=True, slots=True)
class SequenceContext:
    """What a drafter must know of a sequence to propose what its verifier is likely to draw.

    Its first `inherited` entries are those of the sequence `source` of the same link, which may
    have ended.
    """

    first_token: int
    output_start: int
    seed: int = 0
    choice_index: int = 0
    temperature: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    source: int = 0
    inherited: int = 0


class DraftSource(StrEnum):
    """What a draft was made by."""

    CHAIN = "chain"
    LOOKUP = "lookup"


class DraftBudget(NamedTuple):
    """Draft tokens asked for at most: of a lookup where a suffix repeats, else of a chain."""

    chain: int = 0
    lookup: int = 0

    def __bool__(self) -> bool:
        return bool(self.chain or self.lookup)


NO_DRAFT = DraftBudget()


@dataclass(frozen=True, slots=True)
class AppendEntries:
    """Entries [start, start + len(tokens)), and a wish for a draft after them."""

    seq: int
    start: int
    tokens: tuple[int, ...]
    wish: DraftBudget = NO_DRAFT
    opening: SequenceContext | None = None

    @property
    def stop(self) -> int:
        """One past the last entry."""
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True)
class Draft:
    """Proposed tokens for the positions base + 1, base + 2, ... after `base` entries.

    A lookup has no confidences.
    """

    seq: int
    base: int
    tokens: tuple[int, ...]
    confidence: tuple[float, ...] = ()
    source: DraftSource = DraftSource.CHAIN


@dataclass(frozen=True, slots=True)
class ResendFrom:
    """The drafter holds `real_len` entries, fewer than a message that ended at `base` assumed."""

    seq: int
    real_len: int
    base: int


@dataclass(frozen=True, slots=True)
class CatchUpAck:
    """The drafter holds `real_len` entries after a bulk message of `rows` rows up to `stop`.

    The message left a gap, and was not applied, where `real_len` is less than `stop`. The
    drafter's device took `compute_us` microseconds for rows of the link since its last Ack.
    """

    seq: int
    real_len: int
    stop: int
    rows: int
    compute_us: int = 0


@dataclass(frozen=True, slots=True)
class DrafterInfo:
    """What a drafter announces of itself: see DescribeResponse."""

    checkpoint_hash: str
    target_fingerprint: str
    aux_layer_ids: tuple[int, ...]
    target_hidden_size: int
    vocab_size: int
    draft_vocab_size: int
    max_length: int
    max_draft_tokens: int
    lookup_match: int = 0
    expected_acceptance: tuple[float, ...] = ()
    device: str = ""
    max_round_bytes: int = MAX_ROUND_BYTES


@dataclass(frozen=True, slots=True)
class DraftCost:
    """How long a drafter had a round's request, in microseconds."""

    queue_us: int = 0
    compute_us: int = 0


@dataclass(frozen=True, slots=True)
class DrafterUp:
    """A drafter is there over a new link, and knows nothing of any sequence."""

    link: int
    welcome: DrafterInfo


@dataclass(frozen=True, slots=True)
class DrafterDown:
    """The drafter is gone; nothing outstanding will be answered."""

    reason: str


@dataclass(frozen=True, slots=True)
class Proposals:
    """The answers that came in one message."""

    drafts: tuple[Draft, ...]
    needs: tuple[ResendFrom, ...]
    cost: DraftCost


DraftEvent = DrafterUp | DrafterDown | Proposals | CatchUpAck


class DraftPort(Protocol[Features]):
    """A drafter as the verifier's engine sees it: sends never block, answers come as events.

    `Features` is the array type of the captured states. What is sent for a link that is no
    longer up is dropped.
    """

    def start(self, deliver: Callable[[DraftEvent], None]) -> None:
        """Connect, and deliver events from any thread from now on."""

    async def close(self) -> None:
        """Drop the link for good."""

    def round(
        self,
        link: int,
        extends: Sequence[AppendEntries],
        features: Sequence[Features],
        closes: Sequence[int],
    ) -> None:
        """Send one round: `features[i]` is [len(extends[i].tokens), feature width]."""

    def bulk(self, link: int, extend: AppendEntries, features: Features) -> None:
        """Send rows beyond a round's worth; an Ack answers."""
