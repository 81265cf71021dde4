"""The choice of draft lengths, of chains and of lookups, in simulated time."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import pytest

from specwire.messages import DraftBudget
from tests.support.simulation import CHAIN, LOOKUP, Simulation, World, best_ratio
from verifier_svc.draft_length import controller as policy_module
from verifier_svc.draft_length import expected_gain
from verifier_svc.draft_length.acceptance_model import AcceptanceStats
from verifier_svc.draft_length.controller import DraftLengthController

PAYS = {
    "good drafter": World(acceptance=0.8),
    "middling drafter": World(acceptance=0.5, draft=0.002),
    "cheap rows": World(per_row=0.0, per_token=0.0005, acceptance=0.9),
    "slow draft": World(acceptance=0.9, draft=0.015),
    "lookups beside a middling drafter": World(acceptance=0.5, hits=0.4, lookup_acceptance=0.8),
    "lookups beside a dead drafter": World(acceptance=0.0, hits=0.5, lookup_acceptance=0.9),
    "lookups beside a slow drafter": World(
        acceptance=0.6, draft=0.002, per_token=0.060, hits=0.5, lookup_acceptance=0.9
    ),
    "good drafter, bad lookups": World(acceptance=0.8, hits=0.5, lookup_acceptance=0.2),
}
NEVER_PAYS = {
    "drafter that is always wrong": World(acceptance=0.0),
    "drafter that is mostly wrong": World(acceptance=0.1, draft=0.006),
    "drafter slower than the target": World(acceptance=0.6, draft=0.060),
    "rows as dear as rounds": World(verify=0.001, per_row=0.020, acceptance=0.5),
    "lookups that are wrong": World(acceptance=0.0, hits=0.8, lookup_acceptance=0.02),
    "lookups that are rare and far": World(
        acceptance=0.0, draft=0.010, hits=0.05, lookup_acceptance=0.9
    ),
}


@pytest.mark.parametrize("sequences", [1, 6])
@pytest.mark.parametrize("name", PAYS)
def test_drafting_that_pays_comes_close_to_the_best_fixed_length(name: str, sequences: int) -> None:
    world = PAYS[name]
    simulation = Simulation(world, sequences)
    simulation.run(100)
    ratio = simulation.run(400)
    best = best_ratio(world, sequences)
    assert ratio > 1 + 0.8 * (best - 1), f"{ratio:.3f} of {best:.3f}"


@pytest.mark.parametrize("sequences", [1, 6])
@pytest.mark.parametrize("name", NEVER_PAYS)
def test_drafting_that_cannot_pay_stops(name: str, sequences: int) -> None:
    world = NEVER_PAYS[name]
    assert best_ratio(world, sequences) < 1.02
    simulation = Simulation(world, sequences)
    simulation.run(60)
    simulation.wishes.clear()
    simulation.run(200)
    assert sum(length > 0 for length in simulation.lengths) <= 10


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", [*PAYS, *NEVER_PAYS])
def test_it_never_falls_behind_plain_decoding(name: str, seed: int) -> None:
    """From the first round on, learning included: 600 rounds are about a minute of text."""
    simulation = Simulation({**PAYS, **NEVER_PAYS}[name], seed=seed)
    assert simulation.run(600) > 0.98


def test_a_drafter_that_becomes_good_is_used_again() -> None:
    simulation = Simulation(World(acceptance=0.0))
    simulation.run(200)
    simulation.wishes.clear()
    simulation.run(20)
    assert max(simulation.lengths) == 0
    simulation.world = World(acceptance=0.8)
    simulation.run(300)
    assert simulation.run(300) > 1 + 0.7 * (best_ratio(simulation.world, 1) - 1)


def test_a_drafter_that_becomes_fast_is_used_again() -> None:
    simulation = Simulation(World(draft=0.200))
    simulation.run(200)
    simulation.world = World(draft=0.002)
    simulation.run(400)
    assert simulation.run(300) > 1 + 0.7 * (best_ratio(simulation.world, 1) - 1)


def test_a_drafter_that_becomes_bad_is_dropped() -> None:
    simulation = Simulation(World(acceptance=0.9))
    simulation.run(300)
    simulation.world = World(acceptance=0.0)
    assert simulation.run(600) > 0.95
    simulation.wishes.clear()
    simulation.run(100)
    assert sum(length > 0 for length in simulation.lengths) <= 10


def test_a_disturbed_machine_does_not_end_drafting() -> None:
    """Drafts were dear while all was: when steps are fast again, they are taken to be so too."""
    simulation = Simulation(World(0.020, 0.0003, 0.006, 0.0011, acceptance=0.6))
    simulation.run(200)
    quiet, simulation.world = simulation.world, World(0.060, 0.0009, 0.030, 0.0033, acceptance=0.0)
    simulation.run(20)
    simulation.world = quiet
    simulation.run(150)
    assert simulation.run(200) > 1 + 0.8 * (best_ratio(quiet, 1) - 1)


def test_a_single_stall_does_not_end_drafting() -> None:
    simulation = Simulation(World(acceptance=0.8, jitter=0.0))
    simulation.run(200)
    simulation.policy.observe_draft(4, 5.0)
    simulation.policy.step_cost.observe(5, 5.0)
    assert simulation.run(100) > 1.1


def test_lengths_follow_each_sequences_own_acceptance() -> None:
    policy = DraftLengthController(8)
    good, bad = policy.new_record(), policy.new_record()
    for _ in range(60):
        policy.observe_draft(8, 0.004)
        policy.step_cost.observe(2, 0.032)
        policy.step_cost.observe(18, 0.060)
        good.observe(CHAIN, 8, 8)
        bad.observe(CHAIN, 8, 0)
    long, short = policy.choose([good, bad], [DraftBudget(8), DraftBudget(8)], [True, True])
    assert long.chain >= 6
    assert short.chain <= 1


def test_each_source_has_its_own_length() -> None:
    policy = DraftLengthController(8)
    copying, own = policy.new_record(), policy.new_record()
    for record in (copying, own):
        for _ in range(60):
            policy.observe_draft(3, 0.005)
            policy.observe_draft(0, 0.001)
            policy.step_cost.observe(2, 0.032)
            policy.step_cost.observe(18, 0.060)
            record.observe_search(record is copying)
            record.observe(LOOKUP, 8, 8 if record is copying else 0)
            record.observe(CHAIN, 8, 1)
    wishes = policy.choose([copying, own], [DraftBudget(8, 8), DraftBudget(8, 8)], [True, True])
    assert wishes[0].lookup >= 7
    assert wishes[1].lookup == 0, "the chain is worth more"
    assert 1 <= wishes[1].chain <= 3
    assert (
        policy.choose([copying, own], [DraftBudget(8), DraftBudget(8)], [True, True])[0].lookup == 0
    )


def test_a_lookup_length_is_forgotten_when_lookups_go_wrong() -> None:
    simulation = Simulation(World(acceptance=0.5, hits=0.6, lookup_acceptance=0.9))
    simulation.run(200)
    assert max(wishes[0].lookup for wishes in simulation.wishes[-20:]) >= 6
    simulation.world.lookup_acceptance = 0.02
    simulation.run(200)
    simulation.wishes.clear()
    simulation.run(100)
    assert sum(wishes[0].lookup > 0 for wishes in simulation.wishes) <= 10


def test_only_what_is_ready_is_asked_for() -> None:
    simulation = Simulation(World(acceptance=0.8), 3)
    simulation.run(100)
    policy, records, caps = simulation.policy, simulation.records, [DraftBudget(8)] * 3
    for ready in ([True, False, True], [False] * 3):
        wishes = policy.choose(records, caps, ready)
        assert [bool(wish) for wish in wishes] == ready
        assert policy.drafts, "those that are not ready are made so"


def test_caps_bind() -> None:
    simulation = Simulation(World(acceptance=0.95, per_row=0.0))
    simulation.run(100)
    records = [*simulation.records, simulation.policy.new_record(), *simulation.records]
    wishes = simulation.policy.choose(
        records, [DraftBudget(2), DraftBudget(0), DraftBudget(5)], [True] * 3
    )
    assert all(wish.chain <= cap for wish, cap in zip(wishes, [2, 0, 5], strict=True))
    assert wishes[0].chain == 2
    assert simulation.policy.choose([], [], []) == []


@pytest.mark.parametrize("fixed", [0, 1, 5, 8])
def test_a_fixed_length_is_kept_whatever_it_costs(fixed: int) -> None:
    policy = DraftLengthController(8, fixed)
    record = policy.new_record()
    for _ in range(50):
        policy.observe_draft(8, 10.0)
        policy.step_cost.observe(1, 0.001)
        record.observe(CHAIN, 8, 0)
        record.observe(LOOKUP, 8, 0)
    wishes = policy.choose([record, record], [DraftBudget(8, 8), DraftBudget(3, 0)], [True, True])
    assert wishes == [DraftBudget(fixed, fixed), DraftBudget(min(3, fixed), 0)]
    for _ in range(300):
        assert policy.probe(wishes, [DraftBudget(8, 8), DraftBudget(3, 0)], [0, 1]) == wishes


def test_without_sequences_nothing_is_chosen_and_nothing_forgotten() -> None:
    policy = DraftLengthController(8)
    policy.step_cost.observe(8, 0.040)
    slope = policy.step_cost.slope
    for _ in range(100):
        assert policy.probe(policy.choose([], [], []), [], []) == []
    assert policy.step_cost.slope == slope


@pytest.mark.parametrize(("late", "wrong"), [(0.0, 4), (0.030, 0)])
def test_an_unlucky_start_does_not_end_drafting(late: float, wrong: int) -> None:
    """A middling drafter on the machine that the defaults are for: short requests in turn."""
    world = World(0.020, 0.0003, 0.006, 0.0011, acceptance=0.5, late=late)
    drafted = 0
    for seed in range(12):
        simulation = Simulation(world, seed=seed)
        for _ in range(wrong):
            simulation.policy.new_record().observe(CHAIN, 4, 0)
        for _ in range(3):
            simulation.records = [simulation.policy.new_record()]
            simulation.wishes.clear()
            simulation.run(60)
            drafted += sum(length > 0 for length in simulation.lengths)
    assert drafted > 12 * 140


@pytest.mark.parametrize("what", ["drafts", "rows"])
def test_costs_that_are_believed_too_high_are_tried_again(what: str) -> None:
    """A drafter whose drafts pay, on a machine that was seen at its worst."""
    policy = DraftLengthController(8)
    records = [policy.new_record()]
    for _ in range(60):
        records[0].observe(CHAIN, 4, 3)
        policy.step_cost.observe(1, 0.015)
    for _ in range(20):
        policy.step_cost.observe(9, 0.200 if what == "rows" else 0.018)
        policy.observe_draft(8, 0.100 if what == "drafts" else 0.012)
        policy.step_cost.observe(1, 0.015)
    assert policy.choose(records, [DraftBudget(8)], [True]) == [DraftBudget(0)]
    lengths: list[int] = []
    for _ in range(400):
        length = policy.choose(records, [DraftBudget(8)], [True])[0].chain
        lengths.append(length)
        policy.step_cost.observe(1 + length, 0.015 + 0.0004 * length)
        if length:
            policy.observe_draft(length, 0.002 + 0.001 * length)
            records[0].observe(CHAIN, length, min(length, 3))
    assert sum(length > 0 for length in lengths[-50:]) > 40
    assert sum(length > 0 for length in lengths[:20]) < 5


@pytest.mark.parametrize(("sequences", "least", "most"), [(4, 40, 40), (16, 4, 5)])
def test_a_large_batch_that_stays_plain_is_weighed_more_and_more_rarely(
    sequences: int, least: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation = Simulation(World(acceptance=0.02), sequences)
    simulation.run(200)
    assert not simulation.policy.drafts
    weighed: set[int] = set()

    def counted(*given: Any) -> object:
        weighed.add(len(simulation.wishes))
        return expected_gain.plans(*given)

    monkeypatch.setattr(policy_module, "plans", counted)
    simulation.run(40)
    assert max(simulation.lengths[-40:]) == 0
    assert least <= len(weighed) <= most


def learned(
    acceptance: float, *, apart: bool = True
) -> tuple[DraftLengthController, list[AcceptanceStats]]:
    """Four sequences of a policy that knows all costs: 30 ms and little a row, drafts 6 ms."""
    policy = DraftLengthController(8)
    policy.expect((), apart=apart)
    for rows, length in 5 * list(product((4, 8, 16, 32), (1, 2, 4, 8))):
        policy.step_cost.observe(rows, 0.030 + 0.0002 * rows)
        policy.observe_draft(length, 0.006 + 0.004 * length)
    records = [policy.new_record() for _ in range(4)]
    chance = random.Random(0)
    for _ in range(100):
        hits = [chance.random() < acceptance for _ in range(8)]
        for record in records:
            record.observe(CHAIN, 8, (*hits, False).index(False))
    return policy, records


def test_drafts_that_are_made_beside_steps_may_be_longer() -> None:
    """Two cohorts hide the draft; without drafts all run as one, which bounds what may be lost."""

    def chosen(acceptance: float, cohorts: int) -> int:
        policy, records = learned(acceptance)
        wishes = policy.choose(records, [DraftBudget(8)] * 4, [True] * 4, cohorts)
        return max(wish.chain for wish in wishes)

    assert 0 < chosen(0.7, cohorts=1) < chosen(0.7, cohorts=2)
    assert chosen(0.1, cohorts=2) == 0


@pytest.mark.parametrize("fixed", [None, 3])
def test_two_cohorts_promise_what_their_turns_take(fixed: int | None) -> None:
    """All at once take a step and a draft, two cohorts twice the longer of half a step and it."""
    policy = DraftLengthController(8, fixed)
    policy.expect([0.98] * 8, apart=True)
    for rows in (8, 16, 32):
        policy.step_cost.observe(rows, 0.010 + 0.0005 * rows)
    for length in (0, 3, 8) * 10:
        policy.observe_draft(length, 0.016)
    records = [policy.new_record() for _ in range(8)]
    policy.choose(records, [DraftBudget(3)] * 8, [True] * 8)
    one, two = 0.026 + 0.016, 2 * 0.018
    assert policy.cohort_gain == pytest.approx(one / two, rel=0.05)
    gain = policy.cohort_gain
    policy.choose(records, [DraftBudget(3)] * 8, [True] * 8, 2)
    assert policy.cohort_gain == pytest.approx(gain, rel=0.01), "it does not depend on the present"


def test_a_drafter_on_the_targets_device_promises_nothing() -> None:
    policy, records = learned(0.9, apart=False)
    policy.choose(records, [DraftBudget(8)] * 4, [True] * 4)
    assert policy.cohort_gain == 0
