"""Who verifies and who rests, as sequences come and go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from verifier_svc.cohorts import Cohorts
from verifier_svc.overlap import Turn

FASTER = Turn(32, 0.022, 0.022)
SLOWER = Turn(32, 0.022, 0.100)


def split() -> Cohorts:
    """Cohorts that have found out that two are faster."""
    cohorts = Cohorts(lambda rows: 0.006 + 0.001 * rows)
    while not cohorts.rest([1, 2]):
        cohorts.observe(FASTER)
    return cohorts


def test_all_verify_together_at_first() -> None:
    cohorts = Cohorts(lambda rows: 0.006 + 0.001 * rows)
    assert cohorts.rest([1, 2, 3, 4]) == frozenset()


def test_two_cohorts_take_turns() -> None:
    cohorts = split()
    seqs = [1, 2, 3, 4, 5]
    turns = [cohorts.rest(seqs) for _ in range(6)]
    assert turns[0] | turns[1] == set(seqs)
    assert not turns[0] & turns[1]
    assert turns == turns[:2] * 3


def test_all_verify_together_again_when_two_prove_slower() -> None:
    cohorts = split()
    for _ in range(20):
        cohorts.observe(SLOWER)
    assert cohorts.rest([1, 2, 3, 4]) == frozenset()


def test_one_sequence_is_never_split() -> None:
    cohorts = split()
    assert cohorts.rest([7]) == frozenset()
    assert cohorts.rest([]) == frozenset()
    assert cohorts.rest([7, 8]) == frozenset(), "two sequences need a new trial"


@given(st.lists(st.sets(st.integers(0, 12), min_size=2), min_size=4, max_size=30))
def test_cohorts_stay_balanced_and_nobody_is_left_out(batches: list[set[int]]) -> None:
    cohorts = split()
    rested: dict[int, int] = {}
    for batch in batches:
        seqs = sorted(batch)
        rests = cohorts.rest(seqs)
        assert rests < batch, "somebody runs, and only who is there rests"
        rested = {seq: rested.get(seq, 0) + 1 for seq in rests}
        assert len(rests) >= len(batch) // 2, "at most half and one run"
    for _ in range(2):
        rests = cohorts.rest(seqs)
    assert abs(2 * len(rests) - len(seqs)) <= 1


@given(st.lists(st.booleans(), min_size=10, max_size=60), st.integers(2, 12))
def test_who_stays_runs_at_least_every_third_step(ends: list[bool], count: int) -> None:
    """Others end, one at a time, and new ones take their place."""
    cohorts = split()
    seqs = list(range(count))
    rested = dict.fromkeys(seqs, 0)
    for step, end in enumerate(ends):
        if end:
            gone = seqs.pop(step % len(seqs))
            del rested[gone]
            seqs.append(100 + step)
        rests = cohorts.rest(seqs)
        rested = {seq: rested.get(seq, 0) + 1 if seq in rests else 0 for seq in seqs}
        assert max(rested.values()) <= 2
