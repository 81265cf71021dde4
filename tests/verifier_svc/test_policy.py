"""The choice of draft lengths, of chains and of lookups, in simulated time."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest

from specwire.draft import NO_WISH, DraftSource, Wish
from verifier_svc import outlook
from verifier_svc import policy as policy_module
from verifier_svc.policy import DraftLengthPolicy
from verifier_svc.record import PROBE_LENGTH, Acceptance, Probes

CHAIN, LOOKUP = DraftSource.CHAIN, DraftSource.LOOKUP


@dataclass
class World:
    """Costs in seconds and the chance that a draft token is accepted after those before it.

    A lookup finds something with chance `hits`; it waits for `draft`, and for no token.
    """

    verify: float = 0.030
    per_row: float = 0.001
    draft: float = 0.004
    per_token: float = 0.001
    acceptance: float = 0.7
    jitter: float = 0.1
    hits: float = 0.0
    lookup_acceptance: float = 0.0

    def chance(self, source: DraftSource) -> float:
        return self.acceptance if source is CHAIN else self.lookup_acceptance


@dataclass
class Simulation:
    """Rounds of `sequences` sequences under a policy; probes run beside, nobody waits for them."""

    world: World
    sequences: int = 1
    max_length: int = 8
    seed: int = 0
    time: float = 0.0
    tokens: int = 0
    wishes: list[list[Wish]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.policy = DraftLengthPolicy(self.max_length)
        self.records = [self.policy.new_record() for _ in range(self.sequences)]
        self.random = random.Random(self.seed)

    @property
    def lengths(self) -> list[int]:
        """The longest draft of each round."""
        return [max(max(w.chain, w.lookup) for w in wishes) for wishes in self.wishes]

    def run(self, rounds: int) -> float:
        """Tokens per second of these rounds over those of plain decoding in the same time."""
        time, tokens = self.time, self.tokens
        for _ in range(rounds):
            self.round()
        world = self.world
        plain = self.sequences / (world.verify + world.per_row * self.sequences)
        return (self.tokens - tokens) / (self.time - time) / plain

    def round(self) -> None:
        cap = Wish(self.max_length, self.max_length if self.world.hits else 0)
        wishes = self.policy.choose(self.records, [cap] * self.sequences)
        self.wishes.append(wishes)
        asked = self.policy.probe(wishes, [cap] * self.sequences)
        awaited = [
            bool((ask.chain and wish.chain) or (ask.lookup and wish.lookup))
            for ask, wish in zip(asked, wishes, strict=True)
        ]
        answers = [self.answer(i, ask) for i, ask in enumerate(asked)]
        if any(asked):
            self.wait(max(n for source, n in [*answers, (CHAIN, 0)] if source is CHAIN), awaited)
        # What nobody waited for comes too late to be verified, and is scored all the same.
        for i, (source, length) in enumerate(answers):
            if length and not awaited[i]:
                self.records[i].observe(source, length, self.accept(source, length))
                answers[i] = (CHAIN, 0)
        rows = self.sequences + sum(length for _, length in answers)
        spent = self.spend(self.world.verify + self.world.per_row * rows)
        self.policy.step_cost.observe(rows, spent)
        for i, (source, length) in enumerate(answers):
            accepted = self.accept(source, length)
            self.tokens += 1 + accepted
            if length:
                self.records[i].observe(source, length, accepted)

    def answer(self, i: int, ask: Wish) -> tuple[DraftSource, int]:
        """What the drafter answers, and its length."""
        if ask.lookup:
            found = self.random.random() < self.world.hits
            self.records[i].observe_search(found)
            if found:
                return LOOKUP, ask.lookup
        return CHAIN, ask.chain

    def wait(self, longest: int, awaited: list[bool]) -> None:
        seconds = self.world.draft + self.world.per_token * longest
        if any(awaited):
            self.policy.observe_draft(longest, self.spend(seconds))
        else:
            self.policy.observe_draft(longest, seconds, awaited=False)

    def accept(self, source: DraftSource, length: int) -> int:
        accepted = 0
        while accepted < length and self.random.random() < self.world.chance(source):
            accepted += 1
        return accepted

    def spend(self, seconds: float) -> float:
        seconds *= 1 + self.world.jitter * self.random.uniform(-1, 1)
        self.time += seconds
        return seconds


def best_ratio(world: World, sequences: int, max_length: int = 8) -> float:
    """What the best fixed lengths of chain and lookup reach over plain decoding."""
    plain = sequences / (world.verify + world.per_row * sequences)
    ratios = [1.0]
    lengths = range(max_length + 1)
    for chain, lookup in product(lengths, lengths if world.hits else [0]):
        if not chain and not lookup:
            continue
        hits = world.hits if lookup else 0.0
        of_chain = sum(world.acceptance**i for i in range(1, chain + 1))
        of_lookup = sum(world.lookup_acceptance**i for i in range(1, lookup + 1))
        tokens = sequences * (1 + hits * of_lookup + (1 - hits) * of_chain)
        rows = sequences * (1 + hits * lookup + (1 - hits) * chain)
        wait = world.draft + world.per_token * chain * (1 - hits**sequences)
        ratios.append(tokens / (world.verify + world.per_row * rows + wait) / plain)
    return max(ratios)


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
    assert simulation.run(600) > 0.88
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
    policy = DraftLengthPolicy(8)
    good, bad = policy.new_record(), policy.new_record()
    for _ in range(60):
        policy.observe_draft(8, 0.004)
        policy.step_cost.observe(2, 0.032)
        policy.step_cost.observe(18, 0.060)
        good.observe(CHAIN, 8, 8)
        bad.observe(CHAIN, 8, 0)
    long, short = policy.choose([good, bad], [Wish(8), Wish(8)])
    assert long.chain >= 6
    assert short.chain <= 2


def test_each_source_has_its_own_length() -> None:
    policy = DraftLengthPolicy(8)
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
    wishes = policy.choose([copying, own], [Wish(8, 8), Wish(8, 8)])
    assert wishes[0].lookup >= 7
    assert wishes[1].lookup == 0, "the chain is worth more"
    assert 1 <= wishes[1].chain <= 3
    assert policy.choose([copying, own], [Wish(8), Wish(8)])[0].lookup == 0


def test_a_lookup_length_is_forgotten_when_lookups_go_wrong() -> None:
    simulation = Simulation(World(acceptance=0.5, hits=0.6, lookup_acceptance=0.9))
    simulation.run(200)
    assert max(wishes[0].lookup for wishes in simulation.wishes[-20:]) >= 6
    simulation.world.lookup_acceptance = 0.02
    simulation.run(200)
    simulation.wishes.clear()
    simulation.run(100)
    assert sum(wishes[0].lookup > 0 for wishes in simulation.wishes) <= 10


def test_caps_bind() -> None:
    simulation = Simulation(World(acceptance=0.95, per_row=0.0))
    simulation.run(100)
    records = [*simulation.records, simulation.policy.new_record(), *simulation.records]
    wishes = simulation.policy.choose(records, [Wish(2), Wish(0), Wish(5)])
    assert all(wish.chain <= cap for wish, cap in zip(wishes, [2, 0, 5], strict=True))
    assert wishes[0].chain == 2
    assert simulation.policy.choose([], []) == []


@pytest.mark.parametrize("fixed", [0, 1, 5, 8])
def test_a_fixed_length_is_kept_whatever_it_costs(fixed: int) -> None:
    policy = DraftLengthPolicy(8, fixed)
    record = policy.new_record()
    for _ in range(50):
        policy.observe_draft(8, 10.0)
        policy.step_cost.observe(1, 0.001)
        record.observe(CHAIN, 8, 0)
        record.observe(LOOKUP, 8, 0)
    wishes = policy.choose([record, record], [Wish(8, 8), Wish(3, 0)])
    assert wishes == [Wish(fixed, fixed), Wish(min(3, fixed), 0)]
    for _ in range(300):
        assert policy.probe(wishes, [Wish(8, 8), Wish(3, 0)]) == wishes


def test_acceptance_is_conditional_on_the_position_before() -> None:
    record = Acceptance(4)
    for _ in range(200):
        record.observe(4, 2)
    assert record.rates()[0] > 0.85
    assert record.rates()[1] > 0.85
    assert record.rates()[2] < 0.15
    assert record.rates()[3] == 0.5, "never tried"
    assert record.rates()[:4].prod() < 0.1


def test_a_new_sequence_starts_from_what_others_saw() -> None:
    policy = DraftLengthPolicy(4)
    old = policy.new_record()
    for _ in range(100):
        old.observe(CHAIN, 4, 0)
        old.observe(LOOKUP, 4, 4)
        old.observe_search(False)
    new = policy.new_record()
    assert new.chain.rates()[0] < 0.15
    assert new.lookup.rates()[0] > 0.85
    assert new.found.rates()[0] < 0.15


def test_chain_probes_are_few_and_no_longer_than_what_is_waited_for() -> None:
    probes, caps = Probes(), [Wish(8)] * 20
    for _ in range(3):
        asked = [probes.apply([NO_WISH] * 20, caps, 16) for _ in range(16)]
        assert not any(wish.chain for wishes in asked[:-1] for wish in wishes)
        assert asked[-1] == [*[Wish(PROBE_LENGTH)] * 4, *[NO_WISH] * 16]
    probes = Probes(since_chain=15)
    beside = probes.apply([Wish(2), NO_WISH], [Wish(8), Wish(8)], 16)
    assert beside == [Wish(2), Wish(2)]
    probes = Probes(since_chain=15)
    assert probes.apply([NO_WISH], [Wish(1)], 16) == [Wish(1)], "the cap binds"


def test_without_sequences_nothing_is_chosen_and_nothing_forgotten() -> None:
    policy = DraftLengthPolicy(8)
    policy.step_cost.observe(8, 0.040)
    slope = policy.step_cost.slope
    for _ in range(100):
        assert policy.probe(policy.choose([], []), []) == []
    assert policy.step_cost.slope == slope


@pytest.mark.parametrize("seed", range(8))
def test_an_unlucky_start_does_not_end_drafting(seed: int) -> None:
    """A middling drafter on the machine that the defaults are for: short requests in turn."""
    world = World(0.020, 0.0003, 0.006, 0.0011, acceptance=0.5)
    simulation = Simulation(world, seed=seed)
    for _ in range(4):
        simulation.policy.new_record().observe(CHAIN, 4, 0)
    drafted = 0
    for _ in range(3):
        simulation.records = [simulation.policy.new_record()]
        simulation.wishes.clear()
        simulation.run(60)
        drafted += sum(length > 0 for length in simulation.lengths)
    assert drafted > 100


def test_what_one_sequence_showed_is_forgotten_while_it_is_not_asked() -> None:
    policy = DraftLengthPolicy(4)
    record, shared = policy.new_record(), policy.new_record()
    for _ in range(40):
        policy.new_record().observe(CHAIN, 1, 1)
        record.observe(CHAIN, 1, 0)
    assert record.chain.rates()[0] < 0.3
    for _ in range(1000):
        record.chain.fade()
    assert record.chain.rates()[0] == pytest.approx(shared.chain.rates()[0], abs=0.05)


@pytest.mark.parametrize(("sequences", "least", "most"), [(4, 40, 40), (16, 10, 11)])
def test_a_large_batch_that_stays_plain_is_weighed_now_and_then(
    sequences: int, least: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation = Simulation(World(acceptance=0.02), sequences)
    simulation.run(200)
    assert not simulation.policy.drafts
    weighed: set[int] = set()

    def counted(*given: Any) -> object:
        weighed.add(len(simulation.wishes))
        return outlook.plans(*given)

    monkeypatch.setattr(policy_module, "plans", counted)
    simulation.run(40)
    assert max(simulation.lengths[-40:]) == 0
    assert least <= len(weighed) <= most
