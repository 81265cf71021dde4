"""A slope as it is learned, forgotten, doubted, and not disturbed."""

from __future__ import annotations

import random

import pytest

from verifier_svc.cost_model.regression import ForgettingRegression


def learned(share: float, rounds: int = 60) -> ForgettingRegression:
    """A slope that has seen x vary by 40 around its mean, without noise."""
    slope = ForgettingRegression(0.1)
    for i in range(rounds):
        away = 20.0 if i % 2 else -20.0
        slope.turn(away, (share - slope.share) * away, surprises=i < 8)
    assert slope.share == pytest.approx(share, rel=0.05)
    return slope


@pytest.mark.parametrize("share", [0.002, 0.02, 0.5])
def test_what_is_seen_is_learned_at_once(share: float) -> None:
    slope = ForgettingRegression(0.03)
    for away in (8.0, -8.0, 8.0):
        slope.turn(away, (share - slope.share) * away, surprises=True)
    assert slope.share == pytest.approx(share, rel=0.3, abs=0.005)


def test_a_new_slope_replaces_the_old_one() -> None:
    slope = learned(0.02)
    for i in range(100):
        away = 20.0 if i % 2 else -20.0
        slope.turn(away, (0.005 - slope.share) * away, surprises=False)
    assert slope.share == pytest.approx(0.005, abs=0.002)


@pytest.mark.parametrize("away", [-12.0, 30.0])
def test_a_disturbance_is_not_taken_for_a_slope(away: float) -> None:
    """Few rows that take long would make rows free; many, forbidding."""
    slope = learned(0.02)
    slope.turn(away, 2.0, surprises=False)
    assert slope.share == pytest.approx(0.02, rel=0.1)


def test_a_surprise_that_repeats_is_believed() -> None:
    slope, other = learned(0.02), learned(0.02)
    for _ in range(3):
        slope.turn(30.0, 2.0, surprises=False)
    other.turn(30.0, 2.0, surprises=False)
    assert slope.share - 0.02 > 6 * (other.share - 0.02)


def test_it_is_not_forgotten_while_x_stays_what_it_is() -> None:
    slope, source = learned(0.02), random.Random(0)
    for _ in range(3000):
        slope.turn(source.uniform(-0.5, 0.5), source.gauss(0, 0.15), surprises=False)
    assert slope.share == pytest.approx(0.02, rel=0.1)


def test_a_doubt_lasts_until_it_is_seen_again() -> None:
    slope = learned(0.02)
    before = slope.share
    for _ in range(300):
        slope.doubt()
    assert slope.believed < 0.5 * before
    assert slope.share == before
    slope.turn(60.0, 0.0, surprises=False)
    assert slope.believed > 0.9 * before
