"""One cohort or two, in simulated time: drafters with their own device, and on shared cores."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import pytest

from verifier_svc.cohorts import Cohorts
from verifier_svc.costs import AnswerCost, StepCost
from verifier_svc.overlap import Overlap, Turn

SEQUENCES = 8
LENGTH = 3


@dataclass(frozen=True)
class World:
    """Work in seconds; both services lose `contention` of their speed while both are busy.

    `noise` is the standard deviation of the logarithm of what something takes.
    """

    fixed: float = 0.006
    row: float = 0.001
    draft: float = 0.022
    contention: float = 0.0
    noise: float = 0.05
    load: float = 1.0

    def step(self, rows: float) -> float:
        return self.load * (self.fixed + self.row * rows)


OWN_DEVICE = World()
FAST_DRAFTER = World(draft=0.002)
SHARED_CORES = World(contention=0.5)
ROWS_COST_NOTHING = World(fixed=0.030, row=0.00002)


@dataclass
class Job:
    """Drafts in the making."""

    seqs: frozenset[int]
    asked: float
    left: float
    beside: bool = False


class Service:
    """A verifier that learns as the engine does, and a drafter that serves in order."""

    def __init__(self, world: World, seed: int = 0) -> None:
        self.world = world
        self.random = random.Random(seed)
        self.steps, self.answers = StepCost(), AnswerCost()
        self.cohorts = Cohorts(self.steps.predict)
        self.jobs: list[Job] = []
        self.resting = frozenset[int]()
        self.now = self.ended = 0.0
        # Of each step: how many sequences ran.
        self.ran: list[int] = []

    def run(self, rounds: int) -> float:
        """Verifications per second over those of one cohort on this machine, without noise."""
        began, verified = self.now, 0
        while verified < rounds * SEQUENCES:
            self.turn()
            verified += self.ran[-1]
        alone = self.world.step(SEQUENCES * (1 + LENGTH)) + self.world.load * self.world.draft
        return verified / (self.now - began) * alone / SEQUENCES

    @property
    def split(self) -> float:
        """The share of the last hundred steps that were of a cohort."""
        return sum(ran < SEQUENCES for ran in self.ran[-100:]) / 100

    def turn(self) -> None:
        seqs = [seq for seq in range(SEQUENCES) if seq not in self.resting]
        while any(not job.seqs.isdisjoint(seqs) for job in self.jobs):
            self.draft(self.jobs[0].left)
        started, beside = self.now, bool(self.jobs)
        for job in self.jobs:
            job.beside = True
        rows = len(seqs) * (1 + LENGTH)
        self.verify(self.world.step(rows) * self.noise())
        if beside:
            self.steps.skip()
        else:
            self.steps.observe(rows, self.now - started)
        everyone = SEQUENCES * (1 + LENGTH)
        draft = self.answers.predict(LENGTH)
        self.cohorts.observe(Turn(everyone, draft, self.now - self.ended))
        self.ended = self.now
        work = self.world.load * self.world.draft * self.noise()
        self.jobs.append(Job(frozenset(seqs), self.now, work))
        self.resting = self.cohorts.rest(range(SEQUENCES))
        self.ran.append(len(seqs))

    def draft(self, work: float, speed: float = 1.0) -> None:
        """The drafter has done so much of its first job."""
        self.now += work / speed
        job = self.jobs[0]
        job.left -= work
        if job.left < 1e-9:
            self.jobs.pop(0)
            if not job.beside:
                self.answers.observe(LENGTH, self.now - job.asked, awaited=True)

    def verify(self, work: float) -> None:
        speed = 1 - self.world.contention
        while self.jobs and work > 1e-9:
            both = min(work, self.jobs[0].left)
            self.draft(both, speed)
            work -= both
        self.now += work

    def noise(self) -> float:
        return math.exp(self.random.gauss(0, self.world.noise))


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.15])
def test_a_drafter_with_its_own_device_gets_two_cohorts(noise: float) -> None:
    service = Service(replace(OWN_DEVICE, noise=noise))
    service.run(150)
    assert service.run(300) > 1.2  # 60 ms of one against 44 ms of two
    assert service.split > 0.9


def test_one_cohort_stays_where_the_drafter_is_fast() -> None:
    service = Service(FAST_DRAFTER)
    service.run(300)
    assert set(service.ran) == {SEQUENCES}


@pytest.mark.parametrize("draft", [0.006, 0.022])
def test_one_cohort_stays_where_rows_cost_nothing(draft: float) -> None:
    """A trial ends soon: half steps prove to be slow."""
    service = Service(replace(ROWS_COST_NOTHING, draft=draft))
    assert service.run(500) > 0.99
    assert sum(ran < SEQUENCES for ran in service.ran) <= 40


@pytest.mark.parametrize("noise", [0.0, 0.15])
@pytest.mark.parametrize("contention", [0.2, 0.3, 0.4, 0.5, 0.6])
def test_shared_cores_lead_back_to_one_cohort(contention: float, noise: float) -> None:
    world = replace(SHARED_CORES, contention=contention, noise=noise)
    service = Service(world)
    alone = Service(replace(world, contention=0.9))  # too slow to be split for long
    alone.cohorts.rest = lambda decoding: frozenset()  # type: ignore[method-assign]
    assert service.run(800) > 0.98 * alone.run(800)
    if contention > 0.3:
        assert service.split < 0.5


def test_trials_that_fail_become_rare() -> None:
    service = Service(SHARED_CORES)
    service.run(500)
    first = sum(ran < SEQUENCES for ran in service.ran)
    before = len(service.ran)
    service.run(1000)
    assert first > 0
    assert sum(ran < SEQUENCES for ran in service.ran[before:]) <= first / 2


def test_two_cohorts_return_when_the_drafter_moves_to_its_own_device() -> None:
    service = Service(SHARED_CORES)
    service.run(500)
    service.world = OWN_DEVICE
    service.run(1200)
    assert service.run(100) > 1.2


@pytest.mark.parametrize("load", [0.4, 2.5])
def test_a_machine_that_changes_its_speed(load: float) -> None:
    service = Service(OWN_DEVICE)
    service.run(150)
    service.world = replace(OWN_DEVICE, load=load)
    service.run(200)
    assert service.run(200) > 1.2


def test_one_cohort_returns_when_the_services_begin_to_share_cores() -> None:
    service = Service(OWN_DEVICE)
    service.run(150)
    assert service.split > 0.9
    service.world = SHARED_CORES
    service.run(30)
    assert service.run(500) > 0.97


def overlap_of_two() -> Overlap:
    overlap = Overlap(lambda rows: 0.006 + 0.001 * rows)
    while overlap.cohorts == 1:
        overlap.observe(Turn(32, 0.022, 0.060))
    return overlap


def test_drafts_that_are_missing_do_not_make_two_cohorts_look_fast() -> None:
    overlap = overlap_of_two()
    for _ in range(20):
        overlap.observe(Turn(32, 0.022, math.inf))
    assert overlap.cohorts == 1


def test_a_trial_that_cannot_be_measured_ends() -> None:
    """Prompts run all the time, say."""
    overlap = overlap_of_two()
    for _ in range(60):
        overlap.observe(Turn(32, 0.022, None))
    assert overlap.cohorts == 1


def test_now_and_then_all_verify_together() -> None:
    overlap = overlap_of_two()
    cohorts = []
    for _ in range(300):
        overlap.observe(Turn(32, 0.022, 0.022))
        cohorts.append(overlap.cohorts)
    assert 3 <= cohorts.count(1) <= 6
