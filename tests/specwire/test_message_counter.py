"""Message numbers without gaps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specwire.errors import DataLoss
from specwire.message_counter import MessageCounter


@given(st.integers(0, 3), st.lists(st.integers(0, 6), max_size=12))
def test_numbers_pass_exactly_while_they_count_up(first: int, numbers: list[int]) -> None:
    numbering = MessageCounter(first)
    for due, number in enumerate(numbers, first):
        if number != due:
            with pytest.raises(DataLoss, match=f"message {number} came where {due} was due"):
                numbering.expect(number)
            return
        numbering.expect(number)


def test_a_repeated_number_is_data_loss() -> None:
    numbering = MessageCounter(1)
    numbering.expect(1)
    with pytest.raises(DataLoss):
        numbering.expect(1)


def test_what_one_end_takes_the_other_expects() -> None:
    sender, receiver = MessageCounter(1), MessageCounter(1)
    for _ in range(5):
        receiver.expect(sender.take())
