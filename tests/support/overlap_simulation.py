"""Steps and drafts in simulated time, to try one cohort and two on: the real drafting decides."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from specwire.messages import (
    AppendEntries,
    CatchUpAck,
    Draft,
    DraftCost,
    DrafterInfo,
    DrafterUp,
    DraftEvent,
    Proposals,
)
from tests.support.coordinator_fixtures import LINK, drafting_with
from verifier_svc.draft_length.controller import DraftLengthController
from verifier_svc.draft_length.two_batch_overlap import TwoBatchOverlap
from verifier_svc.kv.block_pool import BlockRange
from verifier_svc.request.sequence import Sequence as Generating
from verifier_svc.request.types import GenerationRequest, Sampling

LENGTH = 8
WELCOME = DrafterInfo("hash", "", (0, 1), 4, 97, 97, max_length=10**9, max_draft_tokens=LENGTH)
GUESS, OTHER = 1, 2


@dataclass(frozen=True)
class World:
    """Costs in seconds: a step is `fixed` and `row` for each, a draft is `draft` and `token` for
    each position of its longest chain, and takes `wire` more that keeps nobody busy.

    `noise` is the standard deviation of the logarithm of each. A draft token is accepted after
    those before it with a chance of `acceptance`.
    """

    fixed: float = 0.006
    row: float = 0.001
    draft: float = 0.014
    token: float = 0.002
    wire: float = 0.0
    noise: float = 0.05
    acceptance: float = 0.7


@dataclass
class Drafter:
    """A DraftPort with a device of its own, which makes drafts of one request after the other."""

    world: World
    random: random.Random
    now: float = 0.0
    free: float = 0.0
    # Answers and when they arrive.
    answers: list[tuple[float, DraftEvent]] = field(default_factory=list)

    def start(self, deliver: Callable[[DraftEvent], None]) -> None:
        pass

    async def close(self) -> None:
        pass

    def bulk(self, link: int, extend: AppendEntries, features: torch.Tensor) -> None:
        ack = CatchUpAck(extend.seq, extend.stop, extend.stop, len(extend.tokens))
        self.answers.insert(0, (self.now, ack))

    def round(
        self,
        link: int,
        extends: Sequence[AppendEntries],
        features: Sequence[torch.Tensor],
        closes: Sequence[int],
    ) -> None:
        if not extends:
            return
        longest = max(extend.wish.chain for extend in extends)
        seconds = self.world.draft + self.world.token * longest
        seconds *= math.exp(self.random.gauss(0, self.world.noise))
        began = max(self.now, self.free)
        self.free = began + seconds
        cost = DraftCost(round((began - self.now) * 1e6), round(seconds * 1e6))
        drafts = tuple(Draft(e.seq, e.stop, (GUESS,) * e.wish.chain) for e in extends)
        self.answers.append((self.free + self.world.wire, Proposals(drafts, (), cost)))


class Always(TwoBatchOverlap):
    """So many cohorts, whatever is promised."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def rest(self, decoding: Sequence[int], gain: float) -> frozenset[int]:
        return super().rest(decoding, math.inf if self.count == 2 else 0.0)


class Turns:
    """An engine's loop, over sequences that never end by themselves.

    `always` keeps to so many cohorts whatever is predicted.
    """

    def __init__(
        self,
        world: World,
        count: int,
        *,
        fixed: int | None = None,
        always: int | None = None,
        device: str = "elsewhere",
        seed: int = 0,
    ) -> None:
        self.world, self.random = world, random.Random(seed)
        self.policy = DraftLengthController(LENGTH, fixed)
        self.drafter = Drafter(world, random.Random(seed + 1))
        self.drafting = drafting_with(self.drafter, self.policy)
        if always is not None:
            self.drafting._cohorts = Always(always)
        expected = (world.acceptance,)
        welcome = replace(WELCOME, expected_acceptance=expected, device=device)
        self.drafting.receive(DrafterUp(LINK, welcome), 0.0)
        self.sequences: list[Generating] = []
        self.made = 0
        self.resize(count)
        self.now = 0.0
        self.tokens = 0.0
        # Of each step: whether others rested.
        self.split: list[bool] = []

    def resize(self, count: int) -> None:
        """The oldest end, or new ones begin, until there are so many."""
        while len(self.sequences) > count:
            self.drafting.close(self.sequences.pop(0).id)
        while len(self.sequences) < count:
            self.made += 1
            sequence = Generating(
                self.made, GenerationRequest("r", (0,) * 5, 4, Sampling(max_tokens=10**9), LENGTH),
                frozenset(), 10**9,
            )  # fmt: skip
            sequence.extent, sequence.computed = BlockRange(0, 50), 4
            self.sequences.append(sequence)
            self.drafting.open(sequence)

    def run(self, rounds: int) -> float:
        """Expected tokens per second while each sequence is verified so many times."""
        began, tokens, verified = self.now, self.tokens, 0
        while verified < rounds * len(self.sequences):
            verified += self.turn()
        return (self.tokens - tokens) / (self.now - began)

    @property
    def share(self) -> float:
        """The share of the last 200 steps that others rested in."""
        return sum(self.split[-200:]) / len(self.split[-200:])

    def turn(self) -> int:
        """One step; returns how many sequences it verified."""
        resting = self.drafting.resting
        self.gather()
        for request in self.drafting.gathering.late(resting):
            self.policy.observe_draft(request.length, self.now - request.started)
        runs = [s for s in self.sequences if s.id not in resting]
        rows = sum(1 + len(s.draft) for s in runs)
        seconds = self.world.fixed + self.world.row * rows
        seconds *= math.exp(self.random.gauss(0, self.world.noise))
        self.now += seconds
        for sequence in runs:
            self.verify(sequence)
        self.policy.step_cost.observe(rows, seconds)
        self.drafter.now = self.now
        self.drafting.send(self.sequences, self.now)
        self.split.append(bool(resting))
        return len(runs)

    def gather(self) -> None:
        """Wait for drafts as the engine does, and take all that has come."""
        gathering, answers = self.drafting.gathering, self.drafter.answers
        while True:
            end = self.now + gathering.remaining(self.now, self.drafting.resting)
            if not answers or answers[0][0] > end:
                self.now = end
                return
            arrived, answer = answers.pop(0)
            self.now = max(self.now, arrived)
            self.drafting.receive(answer, arrived)

    def verify(self, sequence: Generating) -> None:
        chance, length = self.world.acceptance, len(sequence.draft)
        accepted = 0
        while accepted < length and self.random.random() < chance:
            accepted += 1
        sequence.commit([GUESS] * accepted + [OTHER], accepted)
        self.drafting.observe(sequence.id)
        self.tokens += sum(chance**i for i in range(length + 1))
