"""Blocks of prompts, run through arms in turns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from loadtests.common.result import RequestFailed, Result
from loadtests.common.stats import Key
from loadtests.peers.arms import Arm, Sampling, Task


@dataclass(frozen=True, slots=True)
class Record:
    """One request: `result`, or the sentence that says why there is none."""

    prompt: str
    # Seconds after the block's first request.
    began: float
    result: Result | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One block of prompts through one arm.

    `seconds` last from the first request until a client first found no prompt left: that is how
    long all clients were busy. `tokens` came in that time, so that neither counts the end of a
    block, where ever fewer clients ask. A single request counts whole, by its own clock.
    """

    concurrency: int
    temperature: float
    arm: str
    repeat: int
    block: int
    seconds: float
    tokens: int
    records: tuple[Record, ...]

    @property
    def key(self) -> Key:
        return self.repeat, self.block

    @property
    def failed(self) -> bool:
        return any(record.error is not None for record in self.records)

    @property
    def results(self) -> list[Result]:
        """Of the requests that did not fail."""
        return [record.result for record in self.records if record.result is not None]


def blocks(tasks: Sequence[Task], concurrency: int, most: int | None = None) -> list[list[Task]]:
    """Cut the prompts into what an arm runs in one turn; at most so many blocks.

    One prompt at concurrency 1; else twice the concurrency, so that the loop stays closed, the
    last block filled up from the first prompts.
    """
    size = 1 if concurrency == 1 else 2 * concurrency
    count = -(-len(tasks) // size)
    return [
        [tasks[i % len(tasks)] for i in range(block * size, (block + 1) * size)]
        for block in range(count if most is None else min(count, most))
    ]


def turns(
    arms: Sequence[Arm], samplings: Sequence[Sampling], count: int, repeat: int
) -> Iterator[tuple[int, Arm, Sampling]]:
    """Yield (block, arm, sampling): all pairs for each block, beginning with another each time.

    Whatever disturbs the machine for a while hits all arms alike, sampled or greedy.
    """
    pairs = list(product(arms, samplings))
    for block in range(count):
        shift = (repeat + block) % len(pairs)
        for arm, sampling in (*pairs[shift:], *pairs[:shift]):
            yield block, arm, sampling


async def run_block(
    arm: Arm,
    tasks: Sequence[Task],
    sampling: Sampling,
    concurrency: int,
    repeat: int = 0,
    block: int = 0,
) -> Run:
    """Run a block as a closed loop: each client asks again as soon as it is answered."""
    waiting = iter(enumerate(tasks))
    records: dict[int, Record] = {}
    idle: list[float] = []
    start = time.perf_counter()

    async def client() -> None:
        for index, task in waiting:
            began = time.perf_counter() - start
            try:
                records[index] = Record(task.prompt.name, began, await arm.answer(task, sampling))
            except RequestFailed as error:
                records[index] = Record(task.prompt.name, began, None, str(error))
        idle.append(time.perf_counter() - start)

    await asyncio.gather(*(client() for _ in range(concurrency)))
    ordered = tuple(records[index] for index in range(len(tasks)))
    seconds = idle[0]
    if len(ordered) == 1 and (only := ordered[0].result) is not None:
        seconds, tokens = only.seconds, len(only.tokens)
    else:
        tokens = sum(_tokens_until(seconds, record) for record in ordered)
    return Run(concurrency, sampling.temperature, arm.name, repeat, block, seconds, tokens, ordered)


def _tokens_until(seconds: float, record: Record) -> int:
    """Tokens of a request that had come so long after the block's first request."""
    chunks = record.result.chunks if record.result is not None else ()
    return sum(count for at, count in chunks if record.began + at <= seconds)
