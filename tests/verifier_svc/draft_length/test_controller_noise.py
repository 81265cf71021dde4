"""The choice of draft lengths on a noisy machine: stalls, other load, batches that come and go."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import pytest

from specwire.messages import NO_DRAFT, DraftBudget, DraftSource
from verifier_svc.draft_length.acceptance_model import AcceptanceStats
from verifier_svc.draft_length.controller import DraftLengthController

LENGTH = 8


@dataclass(frozen=True)
class World:
    """Costs in seconds; a draft token is accepted after those before it with a chance.

    `beside` of a probe's time is lost to the target, which shares the drafter's cores. `noise`
    is the standard deviation of the logarithm of a measured time, `stalls` the share of times
    that are five times as long. Where drafters know what they know, `doubt` is how little their
    confidences, which are true chances, spread around the sequence's: the two parameters of a beta
    distribution sum to it.
    """

    fixed: float = 0.030
    row: float = 0.0008
    draft: float = 0.004
    token: float = 0.001
    sequence_token: float = 0.0002
    acceptance: float = 0.7
    spread: float = 0.0
    noise: float = 0.15
    stalls: float = 0.01
    beside: float = 0.5
    doubt: float = 0.0


CPU = World()
GPU = World(fixed=0.020, row=0.00002, token=0.0006, sequence_token=0.00002)
STRONG = {"CPU": replace(CPU, acceptance=0.8), "GPU": replace(GPU, acceptance=0.7)}
WORLDS = {
    "strong": STRONG["CPU"],
    "strong, GPU": STRONG["GPU"],
    "weak": replace(CPU, acceptance=0.25, draft=0.006),
    "weak, GPU": replace(GPU, acceptance=0.2, draft=0.006),
    "dead": replace(CPU, acceptance=0.0),
    "even": replace(CPU, acceptance=0.45, draft=0.012),
    "slow": replace(CPU, acceptance=0.3, draft=0.080),
    "by sequence": replace(CPU, acceptance=0.5, spread=0.45),
}


class Batch:
    """A batch that grows to `size`, of sequences that end after 100 rounds or so.

    Scored by expected seconds and tokens, so that only the policy's choices count.
    """

    def __init__(self, world: World, size: int, *, load: bool = False, seed: int = 0) -> None:
        self.world, self.size, self.changing = world, size, load
        self.random = random.Random(seed)
        self.policy = DraftLengthController(LENGTH)
        self.load, self.rounds, self.left = 1.0, 0, 0
        self.sequences: list[tuple[AcceptanceStats, float, int]] = []
        self.choices: list[int] = []

    def run(self, rounds: int) -> float:
        """Tokens per second over those of plain decoding at the same load and batch."""
        tokens = plain = 0.0
        self.choices = []
        for _ in range(rounds):
            self._change()
            made, seconds = self._round()
            alone = self.world.fixed + self.world.row * len(self.sequences)
            tokens += made
            plain += seconds * len(self.sequences) / (alone * self.load)
        return tokens / plain

    def best(self) -> float:
        """What the best fixed length reaches with a full batch of equals."""
        world, size = self.world, self.size
        plain = (world.fixed + world.row * size) / size
        return max(
            size
            * sum(world.acceptance**i for i in range(k + 1))
            / (self._draft_seconds(k, size) + world.fixed + world.row * size * (k + 1))
            * plain
            for k in range(1, LENGTH + 1)
        )

    def _change(self) -> None:
        self.rounds += 1
        self.sequences = [(r, a, left - 1) for r, a, left in self.sequences if left > 1]
        while len(self.sequences) < min(self.size, 1 + self.rounds // 2):
            chance = self.world.acceptance + self.world.spread * self.random.uniform(-1, 1)
            left = 1 + int(self.random.expovariate(0.01))
            self.sequences.append((self.policy.new_record(), chance, left))
        self.left -= 1
        if self.changing and self.left <= 0:
            self.load, self.left = self.random.choice([1, 1.5, 3]), self.random.randint(20, 200)

    def _round(self) -> tuple[float, float]:
        caps = [DraftBudget(LENGTH)] * len(self.sequences)
        wishes = asked = [NO_DRAFT] * len(caps)
        if not self.policy.rests(len(caps)):
            wishes = self.policy.choose(
                [record for record, _, _ in self.sequences], caps, [True] * len(caps)
            )
            asked = self.policy.probe(wishes, caps, range(len(caps)))
        chains = [
            self._chances(c, a.chain) for (_, c, _), a in zip(self.sequences, asked, strict=True)
        ]
        used = [
            self._cut(record, chain) if wish.chain else 0
            for (record, _, _), chain, wish in zip(self.sequences, chains, wishes, strict=True)
        ]
        self.choices.append(max(wish.chain for wish in wishes))
        longest = max(ask.chain for ask in asked)
        seconds = 0.0
        if longest:
            spent = self.load * self._draft_seconds(longest, sum(a.chain > 0 for a in asked))
            awaited = any(wish.chain for wish in wishes)
            seconds = spent if awaited else self.world.beside * spent
            self.policy.observe_draft(longest, spent * self._noise(), awaited=awaited)
        rows = len(self.sequences) + sum(used)
        verify = self.load * (self.world.fixed + self.world.row * rows)
        self.policy.step_cost.observe(rows, verify * self._noise())
        made = 0.0
        for (record, _, _), chain, length in zip(self.sequences, chains, used, strict=True):
            made += sum(math.prod(chain[:i]) for i in range(length + 1))
            if chain:
                # The token after the last that is verified is known too, and late drafts are whole.
                seen = chain[: length + 1] if length else chain
                misses = (i for i, chance in enumerate(seen) if self.random.random() >= chance)
                accepted = next(misses, len(seen))
                told = chain if self.world.doubt else ()
                record.observe(DraftSource.CHAIN, min(accepted + 1, len(seen)), accepted, told)
        return made, seconds + verify

    def _chances(self, chance: float, length: int) -> list[float]:
        """What each token of a chain is accepted with, if all before it were."""
        doubt = self.world.doubt
        if not doubt or not 0 < chance < 1:
            return [chance] * length
        spread = chance * doubt, (1 - chance) * doubt
        return [self.random.betavariate(*spread) for _ in range(length)]

    def _cut(self, record: AcceptanceStats, chain: list[float]) -> int:
        """How much of a chain is verified."""
        if not self.world.doubt:
            return len(chain)
        return record.calibration.kept(chain, self.policy.price)

    def _draft_seconds(self, longest: int, sequences: int) -> float:
        world = self.world
        return world.draft + longest * (world.token + world.sequence_token * sequences)

    def _noise(self) -> float:
        stall = 5 if self.random.random() < self.world.stalls else 1
        return stall * math.exp(self.random.gauss(0, self.world.noise))


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize(("size", "rounds"), [(1, 600), (4, 400), (16, 100)])
def test_speculation_is_never_slower_than_plain_decoding(name: str, size: int, rounds: int) -> None:
    batch = Batch(WORLDS[name], size)
    batch.run(2 * size + 100)
    assert batch.run(rounds) > 0.975


@pytest.mark.parametrize("name", ["strong", "strong, GPU", "dead"])
def test_large_batches_speculate_only_where_rows_are_cheap(name: str) -> None:
    batch = Batch(WORLDS[name], 64)
    batch.run(150)
    assert batch.run(50) > (1.2 if "GPU" in name else 0.975)


@pytest.mark.parametrize("name", ["strong", "weak", "even"])
@pytest.mark.parametrize("size", [1, 16])
def test_other_load_that_comes_and_goes_does_not_mislead(name: str, size: int) -> None:
    batch = Batch(WORLDS[name], size, load=True)
    batch.run(2 * size + 60)
    assert batch.run(600 // size + 100) > 0.97


@pytest.mark.parametrize(("size", "rounds"), [(1, 300), (4, 150), (16, 80)])
@pytest.mark.parametrize("name", STRONG)
def test_a_strong_drafter_comes_close_to_its_best(name: str, size: int, rounds: int) -> None:
    batch = Batch(STRONG[name], size)
    batch.run(2 * size + 150)
    assert batch.run(rounds) > 1 + 0.75 * (batch.best() - 1)


@pytest.mark.parametrize("change", ["the drafter became good", "the drafter became fast"])
def test_speculation_comes_back(change: str) -> None:
    batch = Batch(WORLDS["dead" if "good" in change else "slow"], 4)
    assert batch.run(300) > 0.97
    assert max(batch.choices[-50:]) == 0
    batch.world = STRONG["CPU"]
    batch.run(700)
    assert batch.run(100) > 1 + 0.7 * (batch.best() - 1)


def test_speculation_comes_back_when_the_machine_is_quiet_again() -> None:
    batch = Batch(STRONG["CPU"], 1)
    batch.run(100)
    batch.load = 4.0
    batch.run(100)
    batch.load = 1.0
    batch.run(150)
    assert batch.run(100) > 1 + 0.75 * (batch.best() - 1)


def test_rounds_that_only_measure_cost_less_than_a_hundredth() -> None:
    """Neither plain rounds nor longer drafts, where drafting pays, and chosen otherwise."""
    world = replace(STRONG["CPU"], noise=0.0, stalls=0.0)
    batch = Batch(world, 1)
    batch.run(300)
    with_trials = batch.run(400)
    assert min(batch.choices) == 0
    usual = max(set(batch.choices), key=batch.choices.count)
    tokens = sum(world.acceptance**i for i in range(usual + 1))
    seconds = batch._draft_seconds(usual, 1) + world.fixed + world.row * (usual + 1)
    assert with_trials > 0.99 * tokens / seconds * (world.fixed + world.row)


def test_confidences_save_rows_where_rows_are_dear() -> None:
    """Fixed lengths cannot: a batch of four is best off plain, or nearly so."""
    dear = World(0.020, 0.003, 0.003, 0.0005, 0.00002, acceptance=0.5, spread=0.2, noise=0.1)
    blind, informed = (
        [Batch(replace(dear, doubt=doubt), 4, seed=seed) for seed in range(4)]
        for doubt in (0.0, 2.0)
    )
    assert max(batch.best() for batch in blind) < 1.02

    def mean(batches: list[Batch]) -> float:
        for batch in batches:
            batch.run(100)
        return sum(batch.run(250) for batch in batches) / len(batches)

    assert mean(informed) > max(mean(blind), 1.0) + 0.03
