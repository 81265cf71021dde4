"""The choice of the draft length, in simulated time."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from verifier_svc.policy import Acceptance, DraftLengthPolicy, LinearCost

PROBE_INTERVAL = 16


@dataclass
class World:
    """Costs in seconds and the chance that a draft token is accepted after those before it."""

    verify: float = 0.030
    per_row: float = 0.001
    draft: float = 0.004
    per_token: float = 0.001
    acceptance: float = 0.7
    jitter: float = 0.1


@dataclass
class Simulation:
    """Rounds of `sequences` sequences under a policy; probes run beside, nobody waits for them."""

    world: World
    sequences: int = 1
    max_length: int = 8
    seed: int = 0
    time: float = 0.0
    tokens: int = 0
    lengths: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.policy = DraftLengthPolicy(self.max_length)
        self.records = [self.policy.new_acceptance() for _ in range(self.sequences)]
        self.random = random.Random(self.seed)
        self.idle = [0] * self.sequences

    def run(self, rounds: int) -> float:
        """Tokens per second of these rounds over those of plain decoding in the same time."""
        time, tokens = self.time, self.tokens
        for _ in range(rounds):
            self.round()
        world = self.world
        plain = self.sequences / (world.verify + world.per_row * self.sequences)
        return (self.tokens - tokens) / (self.time - time) / plain

    def round(self) -> None:
        lengths = self.policy.choose(self.records, [self.max_length] * self.sequences)
        self.lengths.append(max(lengths))
        if longest := max(lengths):
            spent = self.spend(self.world.draft + self.world.per_token * longest)
            self.policy.observe_draft(longest, spent)
        rows = self.sequences + sum(lengths)
        spent = self.spend(self.world.verify + self.world.per_row * rows)
        self.policy.observe_verify(rows, spent)
        for i, length in enumerate(lengths):
            accepted = self.accept(length)
            self.tokens += 1 + accepted
            if length:
                self.records[i].observe(length, accepted)
            self.idle[i] = 0 if length else self.idle[i] + 1
            if self.idle[i] and self.idle[i] % PROBE_INTERVAL == 0:
                self.records[i].observe(1, self.accept(1))
                self.policy.observe_draft(1, self.world.draft + self.world.per_token)

    def accept(self, length: int) -> int:
        accepted = 0
        while accepted < length and self.random.random() < self.world.acceptance:
            accepted += 1
        return accepted

    def spend(self, seconds: float) -> float:
        seconds *= 1 + self.world.jitter * self.random.uniform(-1, 1)
        self.time += seconds
        return seconds


def best_ratio(world: World, sequences: int, max_length: int = 8) -> float:
    """What the best fixed length reaches over plain decoding."""
    plain = sequences / (world.verify + world.per_row * sequences)
    ratios = [1.0]
    for k in range(1, max_length + 1):
        tokens = sequences * sum(world.acceptance**i for i in range(k + 1))
        rows = sequences * (1 + k)
        seconds = world.verify + world.per_row * rows + world.draft + world.per_token * k
        ratios.append(tokens / seconds / plain)
    return max(ratios)


PAYS = {
    "good drafter": World(acceptance=0.8),
    "middling drafter": World(acceptance=0.5, draft=0.002),
    "cheap rows": World(per_row=0.0, per_token=0.0005, acceptance=0.9),
    "slow draft": World(acceptance=0.9, draft=0.015),
}
NEVER_PAYS = {
    "drafter that is always wrong": World(acceptance=0.0),
    "drafter that is mostly wrong": World(acceptance=0.1, draft=0.006),
    "drafter slower than the target": World(acceptance=0.6, draft=0.060),
    "rows as dear as rounds": World(verify=0.001, per_row=0.020, acceptance=0.5),
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
    simulation.lengths.clear()
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
    simulation.lengths.clear()
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
    simulation.lengths.clear()
    simulation.run(100)
    assert sum(length > 0 for length in simulation.lengths) <= 10


def test_a_single_stall_does_not_end_drafting() -> None:
    simulation = Simulation(World(acceptance=0.8, jitter=0.0))
    simulation.run(200)
    simulation.policy.observe_draft(4, 5.0)
    simulation.policy.observe_verify(5, 5.0)
    assert simulation.run(100) > 1.1


def test_lengths_follow_each_sequences_own_acceptance() -> None:
    policy = DraftLengthPolicy(8)
    good, bad = policy.new_acceptance(), policy.new_acceptance()
    for _ in range(60):
        policy.observe_draft(8, 0.004)
        policy.observe_verify(2, 0.032)
        policy.observe_verify(18, 0.060)
        good.observe(8, 8)
        bad.observe(8, 0)
    long, short = policy.choose([good, bad], [8, 8])
    assert long >= 6
    assert short <= 1


def test_caps_bind() -> None:
    simulation = Simulation(World(acceptance=0.95, per_row=0.0))
    simulation.run(100)
    records = [*simulation.records, simulation.policy.new_acceptance(), *simulation.records]
    lengths = simulation.policy.choose(records, [2, 0, 5])
    assert all(length <= cap for length, cap in zip(lengths, [2, 0, 5], strict=True))
    assert lengths[0] == 2
    assert simulation.policy.choose([], []) == []


@pytest.mark.parametrize("fixed", [0, 1, 5, 8])
def test_a_fixed_length_is_kept_whatever_it_costs(fixed: int) -> None:
    policy = DraftLengthPolicy(8, fixed)
    record = policy.new_acceptance()
    for _ in range(50):
        policy.observe_draft(8, 10.0)
        policy.observe_verify(1, 0.001)
        record.observe(8, 0)
    assert policy.choose([record, record], [8, 3]) == [fixed, min(3, fixed)]
    assert not policy.adaptive


def test_acceptance_is_conditional_on_the_position_before() -> None:
    record = Acceptance(4)
    for _ in range(200):
        record.observe(4, 2)
    assert record.rate(0) > 0.9
    assert record.rate(1) > 0.9
    assert record.rate(2) < 0.1
    assert record.rate(3) == 0.5, "never tried"
    assert record.gains()[3] < 0.1


def test_a_new_sequence_starts_from_what_others_saw() -> None:
    policy = DraftLengthPolicy(4)
    old = policy.new_acceptance()
    for _ in range(100):
        old.observe(4, 0)
    assert policy.new_acceptance().rate(0) < 0.1


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
