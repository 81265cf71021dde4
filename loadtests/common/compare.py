"""Served outputs against a reference: where they differ, and whether that is a near-tie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.common.result import Result

NEAR_TIE = 1e-4  # logits; the target's own fp32 forward moves them so much between batch shapes
TOKENS_PER_NEAR_TIE = 10_000


@dataclass(frozen=True, slots=True)
class Divergence:
    """A served token that the reference would not have drawn after the served ones before it."""

    prompt: str
    position: int  # in the output
    gap: float  # how far the worse of the two tokens is below the best one, in logits
    limit: float  # under which a gap is a near-tie, in logits

    @property
    def near_tie(self) -> bool:
        return self.gap < self.limit


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Index of the first token that differs or that only one has; None for equal outputs."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return None if len(one) == len(other) else min(len(one), len(other))


def equal(one: Result, other: Result) -> bool:
    """Whether two outputs have the same tokens and ended for the same reason."""
    return (one.tokens, one.finish_reason) == (other.tokens, other.finish_reason)


def divergences(
    prompt: str, first: int, served: Sequence[float], reference: Sequence[float], limit: float
) -> list[Divergence]:
    """Find what two different outputs differ in, the rest of the served one teacher-forced.

    Args:
        prompt: its name.
        first: index of the first difference.
        served: by token, how far it is below the best one in logits; 0 for the best.
        reference: the same for the reference's output, whose tokens up to `first` are the same.
        limit: under which a gap is a near-tie, in logits.
    """
    gaps = [*served]
    # Two tokens that differ are a divergence, even where one forward has them exactly equal.
    gaps[first] = max(served[first], reference[first])
    return [
        Divergence(prompt, position, gap, limit)
        for position, gap in enumerate(gaps)
        if position == first or not gap <= 0  # so that NaN is one
    ]


def allowed_near_ties(tokens: int) -> int:
    """How many near-ties so many fp32 tokens may have: 1 in 10,000, and 1 in fewer."""
    return max(1, tokens // TOKENS_PER_NEAR_TIE)
