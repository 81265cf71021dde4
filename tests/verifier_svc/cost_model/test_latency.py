"""What steps cost, learned from noisy measurements."""

from __future__ import annotations

import random

import pytest

from verifier_svc.cost_model.latency import DraftLatency, LinearLatency, StepLatency


def test_costs_are_a_line_that_forgets() -> None:
    cost = LinearLatency(slope_share=0.1)
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
    cost = LinearLatency(slope_share=0.1)
    for x, seconds in ((10, 0.001), (1, 0.100)):
        cost.observe(x, seconds)
    assert cost.slope >= 0
    assert cost.predict(1000) >= 0
    assert cost.predict(0) >= 0


def test_prompt_rows_are_bought_with_a_share_of_the_step() -> None:
    """Part of their cost does not depend on their number: it converges all the same."""
    cost = StepLatency()
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
    cost = StepLatency()
    cost.observe(0, 0.320, 512)
    assert not cost.known
    cost.observe(4, 0.030)
    assert cost.prompt_rows(4, 0.7) == pytest.approx(0.7 * 0.030 / (0.320 / 512), abs=1)


def test_prompt_rows_that_become_dear_are_found_out_soon() -> None:
    cost = StepLatency()
    for _ in range(20):
        cost.observe(8, 0.040)
        cost.observe(8, 0.060, 100)
    for _ in range(8):
        cost.observe(8, 0.040 + 0.002 * 100, 100)
    assert cost.prompt_rows(8, 0.7) == pytest.approx(0.7 * 0.040 / 0.002, rel=0.2)


def test_a_stall_and_a_few_rows_tell_little_of_prompts() -> None:
    cost = StepLatency()
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
    cost = StepLatency()
    for _ in range(20):
        cost.observe(8, 0.040)
    for _ in range(40):
        cost.observe(8, 0.020, 32)
    assert cost.predict(8) < 0.022
    for _ in range(40):
        cost.observe(8, 0.080, 32)
    assert cost.predict(8) < 0.022


def test_an_answer_that_nobody_awaited_proves_only_that_drafts_are_cheap() -> None:
    cost = DraftLatency()
    for _ in range(20):
        cost.observe(1, 0.020, awaited=True)
        cost.observe(5, 0.028, awaited=True)
    cost.observe(3, 1.0, awaited=False)
    assert cost.predict(3) == pytest.approx(0.024, rel=0.1)
    for _ in range(5):
        cost.observe(3, 0.006, awaited=False)
    assert cost.predict(3) == pytest.approx(0.006, rel=0.1)
    assert cost.predict(5) > cost.predict(1), "the line keeps its form"


def test_answers_without_a_chain_have_a_cost_of_their_own() -> None:
    cost = DraftLatency()
    for _ in range(20):
        cost.observe(1, 0.060, awaited=True)
    assert cost.predict(0) > 0.040, "not known yet"
    cost.observe(0, 0.002, awaited=False)
    assert cost.predict(0) == pytest.approx(0.002)
    assert cost.predict(1) == pytest.approx(0.060)


def test_the_first_answers_count_as_the_fastest_of_them() -> None:
    cost = DraftLatency()
    for seconds in (0.060, 0.006, 0.060):
        cost.observe(3, seconds, awaited=True)
        assert cost.predict(3) == 0
    cost.observe(3, 0.040, awaited=True)
    assert cost.predict(3) == pytest.approx(0.006)
    cost.observe(3, 0.009, awaited=True)
    assert 0.006 < cost.predict(3) < 0.0067


def test_noise_near_the_mean_does_not_turn_a_line() -> None:
    """Steps of 7 to 9 rows say nothing of a slope of 2 %, ones of 40 rows do."""
    cost, source = LinearLatency(slope_share=0.03), random.Random(0)
    for _ in range(300):
        cost.observe(source.choice((7, 8, 9)), 0.040 * source.lognormvariate(0, 0.2))
    assert 0.2 < cost.slope / 0.001 < 3
    for _ in range(100):
        for x in (8, 40):
            cost.observe(x, (0.032 + 0.0008 * x) * source.lognormvariate(0, 0.2))
    assert cost.slope == pytest.approx(0.0008, rel=0.4)


def test_a_batch_that_grows_and_stays_does_not_turn_the_line() -> None:
    """The slope is of seconds: it is not steeper because the usual step has become longer."""
    cost = StepLatency()
    for rows in [4] * 30 + [32] * 3 + [16] * 200:
        cost.observe(rows, 0.001 + 0.0008 * rows)
    assert cost.predict(32) == pytest.approx(0.0266, rel=0.1)
