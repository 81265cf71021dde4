"""Drafts while a prompt runs: prompts stretch a step already, drafts may do so by half."""

from __future__ import annotations

from dataclasses import replace

import pytest

from specwire.messages import Draft, DraftBudget, DrafterUp
from tests.support.coordinator_fixtures import (
    LINK,
    WELCOME,
    Recorder,
    answer,
    decoding,
    drafting_with,
)
from verifier_svc.draft_length.controller import DraftLengthController

FIXED, ROW = 0.0125, 0.001
LOOKUPS = replace(WELCOME, lookup_match=2)


def policy_with(draft: float = 0.0, *, apart: bool = False) -> DraftLengthController:
    """Steps of 12.5 ms and 1 ms a row; drafts take so many seconds, whatever their length."""
    policy = DraftLengthController(8)
    policy.expect([0.9] * 8, apart=apart)
    for _ in range(40):
        for rows in (4, 8, 16, 32, 64):
            policy.step_cost.observe(rows, FIXED + ROW * rows)
        for length in (0, 4, 8) if draft else ():
            policy.observe_draft(length, draft)
    return policy


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("draft", [0.0, 0.002])
def test_the_longest_that_stretch_a_step_by_half(size: int, draft: float) -> None:
    plain = FIXED + ROW * size
    lengths = [n for n in range(1, 9) if plain + ROW * size * n + draft <= 1.5 * plain]
    assert policy_with(draft).beside_prompts(size) == max(lengths, default=0)


@pytest.mark.parametrize(("draft", "longest"), [(0.015, 2), (0.023, 2), (0.025, 0)])
def test_of_two_cohorts_the_drafts_or_the_step_may_be_so_long(draft: float, longest: int) -> None:
    """Four of eight take 16.5 ms, and 24.5 with two tokens each."""
    assert policy_with(draft, apart=True).beside_prompts(8, cohorts=2) == longest


def test_a_fixed_length_stays() -> None:
    assert DraftLengthController(8, fixed=3).beside_prompts(64) == 8


def test_wishes_are_shorter_while_a_prompt_runs(port: Recorder) -> None:
    policy = policy_with()
    drafting = drafting_with(port, policy)
    drafting.receive(DrafterUp(LINK, LOOKUPS), 0.0)
    policy.choose = lambda records, caps, *_: list(caps)  # type: ignore[method-assign]
    one, prompt = decoding(9, 1), decoding(30, 2, max_draft_tokens=0)
    prompt.computed = 10
    drafting.open(one)
    drafting.open(prompt)

    def wish() -> DraftBudget:
        drafting.send([one, prompt], 1.0)
        drafting.receive(answer(Draft(1, one.entries, ())), 1.01)
        one.commit([50], 0)
        return port.rounds[-1][1][0].wish

    assert wish() == DraftBudget(6, 6), "one that wants no drafts waits for them, too"
    prompt.computed = 29
    assert wish() == DraftBudget(8, 8)
