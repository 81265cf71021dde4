"""Who verifies and who rests, as promises change and sequences come and go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from verifier_svc.draft_length.two_batch_overlap import FORM, STAY, TwoBatchOverlap

PROMISING, MIDDLING, BAD = FORM + 0.1, (FORM + STAY) / 2, STAY - 0.1


def test_two_cohorts_take_turns() -> None:
    cohorts, seqs = TwoBatchOverlap(), [1, 2, 3, 4, 5]
    turns = [cohorts.rest(seqs, PROMISING) for _ in range(6)]
    assert turns[0] | turns[1] == set(seqs)
    assert not turns[0] & turns[1]
    assert turns == turns[:2] * 3


def test_now_and_then_all_verify_together() -> None:
    cohorts = TwoBatchOverlap()
    rests = [cohorts.rest([1, 2, 3], PROMISING) for _ in range(1000)]
    assert 5 <= rests.count(frozenset()) <= 20


def test_what_promises_little_neither_forms_two_cohorts_nor_ends_them() -> None:
    cohorts = TwoBatchOverlap()
    assert not cohorts.rest([1, 2], MIDDLING)
    assert cohorts.rest([1, 2], PROMISING)
    assert cohorts.rest([1, 2], MIDDLING)
    assert not cohorts.rest([1, 2], BAD)
    assert not cohorts.rest([1, 2], MIDDLING)


@given(st.lists(st.floats(0, 2), min_size=1), st.lists(st.integers(), max_size=1))
def test_one_sequence_is_never_split(gains: list[float], seqs: list[int]) -> None:
    cohorts = TwoBatchOverlap()
    cohorts.rest([*seqs, -1, -2, -3], PROMISING)
    assert not any(cohorts.rest(seqs, gain) for gain in gains)


@given(st.lists(st.sets(st.integers(0, 12), min_size=2), min_size=4, max_size=30))
def test_cohorts_stay_balanced_and_nobody_is_left_out(batches: list[set[int]]) -> None:
    cohorts = TwoBatchOverlap()
    for batch in batches:
        rests = cohorts.rest(sorted(batch), PROMISING)
        assert rests < batch, "somebody runs, and only who is there rests"
        assert len(rests) >= len(batch) // 2, "at most half and one run"
    for _ in range(2):
        rests = cohorts.rest(sorted(batch), PROMISING)
    assert abs(2 * len(rests) - len(batch)) <= 1


@given(st.lists(st.booleans(), min_size=10, max_size=60), st.integers(2, 12))
def test_who_stays_runs_at_least_every_third_step(ends: list[bool], count: int) -> None:
    """Others end, one at a time, and new ones take their place."""
    cohorts, seqs = TwoBatchOverlap(), list(range(count))
    rested = dict.fromkeys(seqs, 0)
    for step, end in enumerate(ends):
        if end:
            del rested[seqs.pop(step % len(seqs))]
            seqs.append(100 + step)
        rests = cohorts.rest(seqs, PROMISING)
        rested = {seq: rested.get(seq, 0) + 1 if seq in rests else 0 for seq in seqs}
        assert max(rested.values()) <= 2


@given(st.lists(st.tuples(st.floats(0, 2), st.sets(st.integers(0, 9))), max_size=40))
def test_whatever_is_promised_somebody_runs(rounds: list[tuple[float, set[int]]]) -> None:
    cohorts = TwoBatchOverlap()
    for gain, batch in rounds:
        rests = cohorts.rest(sorted(batch), gain)
        assert rests < batch or not (rests or batch)
