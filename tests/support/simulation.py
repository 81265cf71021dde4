"""Rounds in simulated time, to try a choice of draft lengths on."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import product

from specwire.messages import NO_DRAFT, DraftBudget, DraftSource
from verifier_svc.draft_length.controller import DraftLengthController

CHAIN, LOOKUP = DraftSource.CHAIN, DraftSource.LOOKUP


@dataclass
class World:
    """Costs in seconds and the chance that a draft token is accepted after those before it.

    A lookup finds something with chance `hits`; it waits for `draft`, and for no token. The first
    answer is `late` by so many seconds.
    """

    verify: float = 0.030
    per_row: float = 0.001
    draft: float = 0.004
    per_token: float = 0.001
    acceptance: float = 0.7
    jitter: float = 0.1
    late: float = 0.0
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
    wishes: list[list[DraftBudget]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.policy = DraftLengthController(self.max_length)
        self.records = [self.policy.new_record() for _ in range(self.sequences)]
        self.random = random.Random(self.seed)
        self.late = self.world.late

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
        cap = DraftBudget(self.max_length, self.max_length if self.world.hits else 0)
        wishes = asked = [NO_DRAFT] * self.sequences
        if not self.policy.rests(self.sequences):
            wishes = self.policy.choose(
                self.records, [cap] * self.sequences, [True] * self.sequences
            )
            asked = self.policy.probe(wishes, [cap] * self.sequences, range(self.sequences))
        self.wishes.append(wishes)
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

    def answer(self, i: int, ask: DraftBudget) -> tuple[DraftSource, int]:
        """What the drafter answers, and its length."""
        if ask.lookup:
            found = self.random.random() < self.world.hits
            self.records[i].observe_search(found)
            if found:
                return LOOKUP, ask.lookup
        return CHAIN, ask.chain

    def wait(self, longest: int, awaited: list[bool]) -> None:
        seconds = self.world.draft + self.world.per_token * longest + self.late
        self.late = 0.0
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
