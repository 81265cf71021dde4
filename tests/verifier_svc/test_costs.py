"""What steps cost, learned from noisy measurements."""

from __future__ import annotations

import pytest

from verifier_svc.costs import LinearCost, StepCost


def test_costs_are_a_line_that_forgets() -> None:
    cost = LinearCost(slope_share=0.1)
    assert cost.predict(3) == 0
    for _ in range(100):
        for x in (1, 4, 9):
            cost.observe(x, 0.010 + 0.002 * x)
    for x in (1, 5, 9):
        assert cost.predict(x) == pytest.approx(0.010 + 0.002 * x, rel=0.1)
    for _ in range(100):
        for x in (1, 4, 9):
            cost.observe(x, 0.005 + 0.001 * x)
    assert cost.predict(4) == pytest.approx(0.009, rel=0.1)


def test_costs_are_never_negative() -> None:
    cost = LinearCost(slope_share=0.1)
    for x, seconds in ((10, 0.001), (1, 0.100)):
        cost.observe(x, seconds)
    assert cost.slope >= 0
    assert cost.predict(1000) >= 0
    assert cost.predict(0) >= 0


def test_prompt_rows_are_bought_with_a_share_of_the_step() -> None:
    """Part of their cost does not depend on their number: it converges all the same."""
    cost = StepCost()
    assert cost.prompt_rows(8, 0.7) == 0
    for _ in range(20):
        cost.observe(8, 0.040)
    rows = 512
    for _ in range(20):
        cost.observe(8, 0.040 + 0.008 + 0.0005 * rows, rows)
        rows = cost.prompt_rows(8, 0.7)
    assert rows == pytest.approx((0.7 * 0.040 - 0.008) / 0.0005, abs=2)
    assert cost.predict(8) == pytest.approx(0.040), "nothing of it is laid to those who verify"


def test_prompts_alone_tell_what_a_row_costs() -> None:
    cost = StepCost()
    cost.observe(0, 0.320, 512)
    assert not cost.known
    cost.observe(4, 0.030)
    assert cost.prompt_rows(4, 0.7) == pytest.approx(0.7 * 0.030 / (0.320 / 512), abs=1)


def test_prompt_rows_that_become_dear_are_found_out_soon() -> None:
    cost = StepCost()
    for _ in range(20):
        cost.observe(8, 0.040)
        cost.observe(8, 0.060, 100)
    for _ in range(8):
        cost.observe(8, 0.040 + 0.002 * 100, 100)
    assert cost.prompt_rows(8, 0.7) == pytest.approx(0.7 * 0.040 / 0.002, rel=0.2)


def test_a_stall_and_a_few_rows_tell_little_of_prompts() -> None:
    cost = StepCost()
    for _ in range(20):
        cost.observe(8, 0.040)
        cost.observe(8, 0.060, 100)
    before = cost.prompt_rows(8, 0.7)
    cost.observe(8, 5.0, 3)
    assert cost.prompt_rows(8, 0.7) == before
    cost.observe(8, 5.0, 100)
    assert cost.prompt_rows(8, 0.7) > before / 2


def test_a_step_with_prompts_shows_that_the_machine_became_fast() -> None:
    """Never that it became slow: that may be the prompt."""
    cost = StepCost()
    for _ in range(20):
        cost.observe(8, 0.040)
    for _ in range(40):
        cost.observe(8, 0.020, 32)
    assert cost.predict(8) < 0.022
    for _ in range(40):
        cost.observe(8, 0.080, 32)
    assert cost.predict(8) < 0.022
