"""Limits, as both ends of the wire see them."""

from __future__ import annotations

import math

from hypothesis import example, given
from hypothesis import strategies as st

from specwire import limits
from specwire.limits import Range, as_fp32

RANGES = [value for value in vars(limits).values() if isinstance(value, Range)]


@given(st.sampled_from(RANGES), st.floats(0, 1))
@example(limits.REPETITION_PENALTY, 0.0)
def test_what_the_sender_may_send_is_inside_when_it_arrives(allowed: Range, at: float) -> None:
    value = allowed.low + at * (allowed.high - allowed.low)
    if allowed.above:
        value = max(value, limits.LEAST_FP32)
    assert allowed.admits(as_fp32(value))


@given(st.sampled_from(RANGES))
def test_what_is_outside_is_not_admitted(allowed: Range) -> None:
    for value in (allowed.low - 0.001, allowed.high + 0.001, math.nan, math.inf, -math.inf):
        assert not allowed.admits(value)
    assert allowed.admits(allowed.low) != allowed.above


def test_a_range_reads_as_a_sentence_does() -> None:
    assert str(limits.TOP_P) == "above 0 and at most 1"
    assert str(limits.REPETITION_PENALTY) == "at least 0.01 and at most 100"
