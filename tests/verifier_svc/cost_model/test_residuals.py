"""Costs that rise by steps are known by the number of rows."""

from __future__ import annotations

import random

import pytest

from verifier_svc.cost_model.latency import StepLatency
from verifier_svc.cost_model.residuals import RowResiduals


def blocks(rows: int) -> float:
    """Seconds of a kernel that takes eight rows at a time."""
    return 0.010 + 0.008 * -(-rows // 8)


def test_the_last_row_of_a_block_is_known_to_be_free() -> None:
    cost, chance = StepLatency(), random.Random(0)
    for _ in range(600):
        rows = chance.choice([4, 6, 8, 10, 12, 16])
        cost.observe(rows, blocks(rows) * chance.gauss(1, 0.05))
    assert cost.predict(8) / cost.predict(4) == pytest.approx(1.0, abs=0.12)
    assert cost.predict(10) / cost.predict(8) == pytest.approx(26 / 18, abs=0.15)


def test_a_stall_moves_little_and_what_is_far_off_nothing() -> None:
    residuals = RowResiduals()
    for _ in range(100):
        residuals.observe(4, 1.2)
        residuals.observe(8, 0.8)
    known = residuals.at(8)
    assert known == pytest.approx(0.8, abs=0.04)
    assert residuals.at(4) == pytest.approx(1.2, abs=0.04)
    residuals.observe(8, 50.0)
    assert residuals.at(8) < 1.05 * known
    assert residuals.at(7.5) == pytest.approx((1 + residuals.at(8)) / 2)
    assert residuals.at(12) == residuals.at(500) == residuals.at(0) == 1.0


def test_where_one_number_of_rows_runs_it_lies_on_the_line() -> None:
    residuals = RowResiduals()
    for _ in range(200):
        residuals.observe(16, 1.3)
    assert residuals.at(16) == pytest.approx(1.0, abs=0.01)


def test_more_rows_than_are_told_apart_lie_on_the_line() -> None:
    residuals = RowResiduals()
    residuals.observe(65, 2.0)
    residuals.observe(0, 2.0)
    assert {residuals.at(rows) for rows in range(80)} == {1.0}
    residuals.observe(64, 1.2)
    assert residuals.at(64) > 1.0, "the last that is told apart"
    assert residuals.at(63.5) == pytest.approx((1 + residuals.at(64)) / 2)
