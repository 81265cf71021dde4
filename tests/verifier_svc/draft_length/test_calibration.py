"""What confidences of chains come to mean."""

import random
from itertools import pairwise

import pytest

from specwire.messages import DraftBudget, DraftSource
from verifier_svc.draft_length.acceptance_model import AcceptanceStats
from verifier_svc.draft_length.calibration import Calibration
from verifier_svc.draft_length.expected_gain import plans

CHAIN = DraftSource.CHAIN


def taught(truth: dict[float, float], count: int = 400) -> Calibration:
    """One that has seen tokens of each confidence, accepted with the chance beside it."""
    calibration, chance = Calibration(), random.Random(0)
    for _ in range(count):
        for confidence, hit in truth.items():
            calibration.observe(confidence, chance.random() < hit)
    return calibration


def test_before_anything_is_seen_confidences_are_chances() -> None:
    calibration = Calibration()
    assert calibration.kept([0.95, 0.55, 0.95, 0.15], 0.4) == 3
    assert calibration.kept([0.95, 0.55, 0.95, 0.15], 0.5) == 2, "chances multiply"
    assert calibration.kept([0.05, 0.95], 0.1) == 0
    assert calibration.kept([], 0.1) == 0
    assert calibration.kept([0.0, 1.0], 0.0) == 2, "rows that cost nothing are all verified"


def test_a_drafter_that_is_too_sure_is_seen_through() -> None:
    calibration = taught({0.95: 0.2, 0.35: 0.7})
    assert calibration.kept([0.95], 0.4) == 0
    assert calibration.kept([0.35], 0.4) == 1


def test_the_profile_is_of_what_was_seen_lately() -> None:
    assert Calibration().profile() == [(1.0, 1.0)]
    calibration = taught({0.95: 0.9, 0.15: 0.1})
    shares, chances = zip(*calibration.profile(), strict=True)
    assert sum(shares) == pytest.approx(1)
    assert [shares[1], shares[9]] == pytest.approx([0.5, 0.5], abs=0.05)
    assert chances[9] == pytest.approx(0.9, abs=0.1)
    for _ in range(3000):
        calibration.observe(0.55, True)
    assert calibration.profile()[5][0] > 0.95


def record_of(truth: dict[float, float]) -> AcceptanceStats:
    record, chance = AcceptanceStats(4), random.Random(1)
    for _ in range(400):
        for confidence, hit in truth.items():
            record.observe(CHAIN, 1, int(chance.random() < hit), [confidence])
    return record


def planned(record: AcceptanceStats, price: float) -> tuple[list[float], list[float]]:
    """Expected tokens and rows by length of the chain."""
    made = plans([record], [DraftBudget(4)], price, [0.0] * 5)
    return (
        ([plan.tokens for plan in made], [plan.rows for plan in made]) if made else ([1.0], [1.0])
    )


def test_what_will_be_cut_is_not_paid_for() -> None:
    """Half of the tokens are as good as certain: the others cost no rows where rows are dear."""
    record = record_of({0.95: 0.95, 0.05: 0.05})
    tokens, rows = planned(record, 0.0)
    assert tokens[1] == pytest.approx(1.5, abs=0.06)
    assert rows[1] == pytest.approx(2, abs=0.03)
    tokens, rows = planned(record, 0.6)
    assert tokens[1] == pytest.approx(1.5, abs=0.08)
    assert rows[1] == pytest.approx(1.5, abs=0.05)
    assert tokens[1] - 0.6 * rows[1] > 1 - 0.6
    assert all(more >= less for less, more in pairwise(rows))


def test_without_a_spread_a_chain_is_worth_a_row_or_is_not() -> None:
    record = record_of({0.55: 0.5})
    tokens, rows = planned(record, 0.7)
    assert rows[-1] == pytest.approx(1, abs=0.03)
    tokens, rows = planned(record, 0.3)
    assert rows[1] == pytest.approx(2, abs=0.03)
    assert tokens[1] - tokens[0] == pytest.approx(record.chain.rates()[0], abs=0.05)
