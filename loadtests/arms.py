"""What is compared: arms that answer the same prompts, in turns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from loadtests.client import Client
from loadtests.peer import Peer
from loadtests.prompts import Prompt
from loadtests.result import RequestFailed, Result
from loadtests.stats import Key
from loadtests.vllm_peer import VllmPeer

PLAIN, SPECULATIVE, TRANSFORMERS = "plain", "speculative", "transformers"
VLLM, VLLM_EAGLE3 = "vllm", "vllm-eagle3"
ARMS = (PLAIN, SPECULATIVE, TRANSFORMERS, VLLM, VLLM_EAGLE3)
OURS = (PLAIN, SPECULATIVE)


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt, its tokens with the chat template, and the seed it has in every arm."""

    prompt: Prompt
    tokens: tuple[int, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """What all arms are asked alike. No arm stops at an end token: outputs have one length."""

    max_tokens: int
    temperature: float


class Arm(Protocol):
    """One way to answer."""

    @property
    def name(self) -> str: ...

    async def answer(self, task: Task) -> Result: ...


@dataclass(frozen=True, slots=True)
class RestArm:
    """Holdcourse through REST, with speculation or without."""

    client: Client
    sampling: Sampling
    speculation: bool

    @property
    def name(self) -> str:
        return SPECULATIVE if self.speculation else PLAIN

    async def answer(self, task: Task) -> Result:
        return await self.client.chat(
            task.prompt.text,
            speculation=self.speculation,
            seed=task.seed,
            ignore_eos=True,
            **asdict(self.sampling),
        )


@dataclass(frozen=True, slots=True)
class PeerArm:
    """Another engine, asked without HTTP."""

    name: str
    peer: Peer | VllmPeer
    sampling: Sampling

    async def answer(self, task: Task) -> Result:
        return await self.peer.generate(
            task.tokens, seed=task.seed, ignore_eos=True, **asdict(self.sampling)
        )


@dataclass(frozen=True, slots=True)
class Record:
    """One request: `result`, or the sentence that says why there is none."""

    prompt: str
    result: Result | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One block of prompts through one arm; `seconds` from its first request to its last end."""

    arm: str
    repeat: int
    block: int
    seconds: float
    records: tuple[Record, ...]

    @property
    def key(self) -> Key:
        return self.repeat, self.block

    @property
    def failed(self) -> bool:
        return any(record.error is not None for record in self.records)

    @property
    def tokens(self) -> int:
        return sum(len(record.result.tokens) for record in self.records if record.result)


def blocks(tasks: Sequence[Task], concurrency: int) -> list[list[Task]]:
    """Cut the prompts into what an arm runs in one turn.

    One prompt at concurrency 1; else twice the concurrency, so that the loop stays closed, the
    last block filled up from the first prompts.
    """
    size = 1 if concurrency == 1 else 2 * concurrency
    count = -(-len(tasks) // size)
    return [
        [tasks[i % len(tasks)] for i in range(block * size, (block + 1) * size)]
        for block in range(count)
    ]


def turns(arms: Sequence[Arm], count: int, repeats: int) -> Iterator[tuple[int, int, Arm]]:
    """Yield (repeat, block, arm): every arm for each block, beginning with another one each time.

    Whatever disturbs the machine for a while hits all arms alike.
    """
    for repeat in range(repeats):
        for block in range(count):
            shift = (repeat + block) % len(arms)
            for arm in (*arms[shift:], *arms[:shift]):
                yield repeat, block, arm


async def run_block(
    arm: Arm, tasks: Sequence[Task], concurrency: int, repeat: int = 0, block: int = 0
) -> Run:
    """Run a block as a closed loop: each client asks again as soon as it is answered."""
    waiting = iter(enumerate(tasks))
    records: dict[int, Record] = {}

    async def client() -> None:
        for index, task in waiting:
            try:
                records[index] = Record(task.prompt.name, await arm.answer(task))
            except RequestFailed as error:
                records[index] = Record(task.prompt.name, None, str(error))

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    seconds = time.perf_counter() - began
    if len(tasks) == 1 and (only := records[0].result) is not None:
        seconds = only.seconds
    return Run(arm.name, repeat, block, seconds, tuple(records[i] for i in range(len(tasks))))


def throughputs(runs: Sequence[Run], arm: str) -> Mapping[Key, float]:
    """Tokens per second of an arm's blocks in which nothing failed."""
    return {run.key: run.tokens / run.seconds for run in runs if run.arm == arm and not run.failed}


def as_json(run: Run) -> dict[str, Any]:
    """A run with every request in it."""
    return asdict(run)
