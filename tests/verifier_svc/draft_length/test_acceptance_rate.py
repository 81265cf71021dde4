"""Chances learned from outcomes."""

import pytest

from verifier_svc.draft_length.acceptance_rate import AcceptanceRate


@pytest.mark.parametrize("before", [True, False])
def test_a_change_is_seen_sooner_than_what_went_before_is_forgotten(before: bool) -> None:
    odds = AcceptanceRate()
    for _ in range(500):
        odds.observe(before)
    changed = 0
    while (odds.rate > 0.5) is before:
        odds.observe(not before)
        changed += 1
    assert changed < 12


def test_odds_that_alternate_are_no_surprise() -> None:
    odds = AcceptanceRate()
    for _ in range(500):
        odds.observe(True)
        odds.observe(False)
        assert 0.4 < odds.rate < 0.6


def test_what_is_not_tried_returns_to_what_is_assumed() -> None:
    others = AcceptanceRate()
    own = AcceptanceRate(others)
    for _ in range(60):
        own.observe(False)
        others.observe(True)
    assert own.rate < 0.35
    for _ in range(2000):
        own.fade()
    assert own.rate == pytest.approx(others.rate, abs=0.01)
