"""Rows of penalties: kept for as long as their sequence, and extended in copies."""

import pytest
import torch

from drafter_svc.inference.penalties import Penalties, PenaltyTable
from drafter_svc.inference.sampling import DraftVocabulary
from specwire.messages import SequenceContext

# Draft ids 0 to 3 stand for these.
TARGETS = [2, 5, 8, 11]
LOGITS = torch.tensor([[1.0, -1.0, 2.0, 0.5]])


@pytest.fixture
def table() -> PenaltyTable:
    return PenaltyTable(DraftVocabulary(torch.tensor(TARGETS), 20), torch.device("cpu"))


def opened(table: PenaltyTable, opening: SequenceContext) -> Penalties:
    penalties = table.open(opening)
    assert penalties is not None
    return penalties


def processed(table: PenaltyTable, *batch: Penalties) -> list[list[float]]:
    with torch.inference_mode():
        rows: list[list[float]] = table.of(batch).apply(LOGITS.repeat(len(batch), 1)).tolist()
    return rows


def test_a_sequence_without_penalties_has_no_row(table: PenaltyTable) -> None:
    assert table.open(SequenceContext(2, 0, seed=5, temperature=0.8)) is None


def test_repetition_sees_all_tokens_and_the_others_the_output(table: PenaltyTable) -> None:
    opening = SequenceContext(
        2, 2, repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=1.0
    )
    penalties = opened(table, opening)
    penalties.extend([5, 8])
    penalties.extend([3, 8])  # 3 cannot be drafted
    assert processed(table, penalties) == [[0.5, -2.0, 1.0 - 2.0 - 0.25, 0.5]]
    # What has been told is not told again.
    assert processed(table, penalties) == [[0.5, -2.0, 1.0 - 2.0 - 0.25, 0.5]]


def test_a_row_is_clean_when_another_sequence_gets_it(table: PenaltyTable) -> None:
    first = opened(table, SequenceContext(2, 0, presence_penalty=1.0, logit_bias={11: 3.0, 4: 9.0}))
    other = opened(table, SequenceContext(5, 0, frequency_penalty=1.0))
    assert processed(table, other, first) == [[1.0, -2.0, 2.0, 0.5], [0.0, -1.0, 2.0, 3.5]]
    first.extend([8])
    table.close(first)
    again = opened(table, SequenceContext(3, 0, presence_penalty=1.0))
    assert again.number == first.number
    assert processed(table, again, other) == [[1.0, -1.0, 2.0, 0.5], [1.0, -2.0, 2.0, 0.5]]


@torch.inference_mode()
def test_guesses_extend_a_copy(table: PenaltyTable) -> None:
    penalties = [
        opened(table, SequenceContext(3, 0, frequency_penalty=rate)) for rate in (1.0, 0.5)
    ]
    rows = table.of(penalties)
    rows.extend(torch.tensor([2, 2]))
    # Of the second chain nothing more is asked; a row without a winner goes on with the first id.
    rows.extend(torch.tensor([-1]))
    assert rows.apply(LOGITS).tolist() == [[0.0, -1.0, 1.0, 0.5]]
    assert rows.apply(LOGITS.repeat(2, 1)).tolist()[1] == [1.0, -1.0, 1.5, 0.5]
    assert processed(table, *penalties) == LOGITS.repeat(2, 1).tolist()
