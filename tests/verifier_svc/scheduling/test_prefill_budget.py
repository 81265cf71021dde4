"""Prompts beside decoding: what they cost it, in simulated time."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import quantiles

import pytest

from verifier_svc.cost_model.latency import StepLatency
from verifier_svc.kv.block_pool import BlockPool
from verifier_svc.request.sequence import Sequence
from verifier_svc.request.types import GenerationRequest, Sampling
from verifier_svc.scheduling.prefill_budget import PrefillBudget
from verifier_svc.scheduling.scheduler import Scheduler

BUDGET = 512


@dataclass
class Machine:
    """Seconds of a step: fixed, by row, by prompt row and the thousands of keys before it."""

    fixed: float = 0.024
    row: float = 0.0008
    prompt_row: float = 0.0006
    keys: float = 0.00015
    chunk: float = 0.003
    jitter: float = 0.1
    stalls: float = 0.0

    def seconds(self, rows: int, prompt_rows: int, position: int) -> float:
        prompt = prompt_rows * (self.prompt_row + self.keys * position / 1000)
        seconds = self.fixed + self.row * rows + prompt + self.chunk * (prompt_rows > 0)
        seconds *= 1 + self.jitter * random.uniform(-1, 1)
        return seconds * (4 if random.random() < self.stalls else 1)


MACHINES = {
    "small CPU": Machine(),
    "small CPU, busy": Machine(jitter=0.2, stalls=0.003),
    "long context is dear": Machine(keys=0.0003),
    "GPU": Machine(0.020, 0.00002, 0.00002, 0.000004, 0.0005, 0.03),
    "slow GPU, large model": Machine(0.060, 0.0001, 0.0004, 0.00002, 0.001, 0.03),
}


@dataclass
class Steps:
    """A scheduler on a machine; `seconds` has each step's time and prompt rows."""

    machine: Machine
    draft: int = 0
    seconds: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        random.seed(1)
        self.cost = StepLatency()
        self.made = Scheduler(
            BlockPool(20_000), max_sequences=64, pace=PrefillBudget(self.cost, BUDGET), keep=False
        )

    def arrive(self, *prompts: int) -> list[Sequence]:
        arrived = []
        for prompt in prompts:
            given = GenerationRequest("r", (1,) * prompt, prompt, Sampling(max_tokens=5000))
            arrived.append(Sequence(len(self.made.running) + 1, given, frozenset(), 20_000))
            self.made.add(arrived[-1])
            self.made.admit()
        return arrived

    def step(self) -> None:
        for sequence in self.made.running:
            sequence.draft = (7,) * self.draft if sequence.decoding else ()
        works = self.made.plan()
        rows = sum(w.draws for w in works if w.draws == len(w.tokens))
        prompt_rows = sum(len(w.tokens) for w in works) - rows
        position = max((w.position for w in works if len(w.tokens) != w.draws), default=0)
        spent = self.machine.seconds(rows, prompt_rows, position)
        self.cost.observe(rows, spent, prompt_rows)
        self.seconds.append((spent, prompt_rows))
        for work in works:
            if work.draws:
                work.sequence.commit([7], 0)
            else:
                work.sequence.computed += len(work.tokens)

    def during(self, prompt: int) -> list[tuple[float, int]]:
        """The steps until a prompt that arrives now has been run."""
        (sequence,) = self.arrive(prompt)
        return self.until(lambda: sequence.decoding)

    def until(self, done: Callable[[], bool]) -> list[tuple[float, int]]:
        before = len(self.seconds)
        while not done():
            self.step()
            assert len(self.seconds) - before < 1000, "the prompt does not get on"
        return self.seconds[before:]


def p95(steps: list[tuple[float, int]]) -> float:
    return quantiles([seconds for seconds, _ in steps], n=20)[-1]


def decoding(machine: Machine, streams: int = 8, draft: int = 0, steps: int = 100) -> Steps:
    made = Steps(machine, draft)
    made.arrive(*[20] * streams)
    for _ in range(steps):
        made.step()
    return made


@pytest.mark.parametrize("draft", [0, 4])
@pytest.mark.parametrize("streams", [1, 8, 48])
@pytest.mark.parametrize("name", MACHINES)
def test_a_long_prompt_slows_decoding_by_less_than_twice(
    name: str, streams: int, draft: int
) -> None:
    """Alone on a small CPU, a stream pays for the rows that a prompt gets at least."""
    made = decoding(MACHINES[name], streams, draft)
    before = p95(made.seconds[-80:])
    during = made.during(4000)
    assert p95(during) < (2.2 if streams == 1 else 2) * before
    bare = 4000 // BUDGET + 1
    mean = sum(seconds for seconds, _ in during) / len(during)
    quiet = sum(seconds for seconds, _ in made.seconds[20:100]) / 80
    assert len(during) <= 2 * bare or mean > 1.2 * quiet, "the prompt could be faster"


def test_what_is_learned_from_few_rows_holds_for_many() -> None:
    """Forty streams decode after a time with one; the line was never seen that far out."""
    made = decoding(Machine(), streams=1, steps=200)
    made.arrive(*[20] * 40)
    made.until(lambda: all(s.decoding for s in made.made.running))
    during = made.during(4000)
    machine = made.machine
    assert p95(during) < 2.3 * (machine.fixed + machine.row * 41)


@pytest.mark.parametrize("factor", [0.4, 2.5])
def test_a_machine_that_changes_its_speed_under_a_prompt(factor: float) -> None:
    made = decoding(Machine(jitter=0.05))
    machine = made.machine
    made.arrive(8000)
    for _ in range(20):
        made.step()
    made.machine = replace(
        machine,
        fixed=factor * machine.fixed,
        row=factor * machine.row,
        prompt_row=factor * machine.prompt_row,
        keys=factor * machine.keys,
        chunk=factor * machine.chunk,
    )
    for _ in range(90):
        made.step()
    plain = factor * (machine.fixed + 8 * machine.row)
    assert p95(made.seconds[-25:]) < 2.1 * plain


def test_prompts_have_steps_for_themselves_while_nothing_decodes() -> None:
    made = Steps(Machine())
    assert [rows for _, rows in made.during(1200)] == [512, 512, 176]


def test_prompts_share_the_rows_in_order_of_arrival() -> None:
    made = decoding(Machine(jitter=0.0))
    first, second = made.arrive(200, 200)
    made.until(lambda: first.decoding)
    assert second.computed < 60
    made.until(lambda: second.decoding)


@pytest.mark.parametrize("name", MACHINES)
def test_a_short_prompt_is_over_in_a_few_steps(name: str) -> None:
    made = decoding(MACHINES[name], streams=15)
    before = p95(made.seconds[-80:])
    during = made.during(100)
    assert len(during) <= 3
    assert max(seconds for seconds, _ in during) < 3.5 * before


def test_where_more_wait_than_decode_prompts_come_first() -> None:
    made = decoding(Machine(), streams=2)
    arrived = made.arrive(*[80] * 30)
    longer = made.until(lambda: all(s.decoding for s in arrived))
    made = decoding(Machine(), streams=2)
    shorter = made.during(80 * 30)
    assert len(longer) < len(shorter) / 1.5


def test_now_and_then_a_step_goes_without_prompts() -> None:
    made = decoding(Machine())
    during = made.during(4000)
    bare = [at for at, (_, rows) in enumerate(during) if not rows]
    assert bare == list(range(8, len(during), 9))
