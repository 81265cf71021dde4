"""Gathering drafts until a deadline, and message numbers without gaps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specwire.errors import DataLoss
from specwire.round import Gathering, Numbering


def test_nothing_to_wait_for_means_no_wait() -> None:
    gathering = Gathering()
    assert gathering.remaining(0.0) == 0
    gathering.await_([], deadline=10.0)
    assert gathering.remaining(1.0) == 0


def test_a_round_leaves_once_every_answer_is_there() -> None:
    gathering = Gathering()
    gathering.await_([1, 2], deadline=10.0)
    assert gathering.remaining(4.0) == 6.0
    gathering.settle(1)
    gathering.settle(99)  # of no concern
    assert gathering.remaining(4.0) == 6.0
    assert gathering.awaited == {2}
    gathering.settle(2)
    assert gathering.remaining(4.0) == 0


def test_a_round_leaves_at_its_deadline_and_never_later() -> None:
    gathering = Gathering()
    gathering.await_([1], deadline=10.0)
    assert gathering.remaining(10.0) == 0
    assert gathering.remaining(11.0) == 0
    assert gathering.awaited == {1}, "who was late can be told"


def test_a_lost_drafter_ends_the_wait() -> None:
    gathering = Gathering()
    gathering.await_([1, 2, 3], deadline=10.0)
    gathering.settle_all()
    assert gathering.remaining(0.0) == 0


def test_the_next_round_waits_for_its_own_sequences_only() -> None:
    gathering = Gathering()
    gathering.await_([1, 2], deadline=10.0)
    gathering.await_([3], deadline=20.0)
    gathering.settle(3)
    assert gathering.remaining(5.0) == 0


@given(st.integers(0, 3), st.lists(st.integers(0, 6), max_size=12))
def test_numbers_pass_exactly_while_they_count_up(first: int, numbers: list[int]) -> None:
    numbering = Numbering(first)
    for due, number in enumerate(numbers, first):
        if number != due:
            with pytest.raises(DataLoss, match=f"message {number} came where {due} was due"):
                numbering.expect(number)
            return
        numbering.expect(number)


def test_a_repeated_number_is_data_loss() -> None:
    numbering = Numbering(1)
    numbering.expect(1)
    with pytest.raises(DataLoss):
        numbering.expect(1)


def test_what_one_end_takes_the_other_expects() -> None:
    sender, receiver = Numbering(1), Numbering(1)
    for _ in range(5):
        receiver.expect(sender.take())
