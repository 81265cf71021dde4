import asyncio
from collections.abc import Sequence

import pytest

from loadtests.common.client import Client
from loadtests.common.prompts import Prompt
from loadtests.common.result import Result
from loadtests.peers.arms import Arm, RestArm, Sampling, Task
from loadtests.peers.schedule import blocks, run_block, turns


def task(number: int) -> Task:
    return Task(Prompt(str(number), ("text",)), (1,), number)


def test_blocks_keep_the_loop_closed() -> None:
    tasks = [task(number) for number in range(5)]
    assert [[t.seed for t in block] for block in blocks(tasks, 1)] == [[0], [1], [2], [3], [4]]
    assert [[t.seed for t in block] for block in blocks(tasks, 2)] == [[0, 1, 2, 3], [4, 0, 1, 2]]
    assert len(blocks(tasks, 1, most=2)) == 2


GREEDY, SAMPLED = Sampling(4, 0.0), Sampling(4, 1.0)


class Paced:
    """Gives a token each hundredth of a second, so many as a task's seed says."""

    name = "paced"
    most = None

    async def answer(self, task: Task, sampling: Sampling) -> Result:
        chunks = tuple(((i + 1) * 0.01, 1) for i in range(task.seed))
        await asyncio.sleep(task.seed * 0.01)
        return Result((0,) * task.seed, task.seed * 0.01, "length", chunks)


async def test_throughput_is_counted_while_all_clients_are_busy() -> None:
    done = await run_block(Paced(), [task(n) for n in (4, 4, 4, 40)], GREEDY, 2)
    assert done.seconds == pytest.approx(0.08, abs=0.03)
    # Of the long request only what had come when the other client ran out of work.
    assert 12 <= done.tokens < 24
    alone = await run_block(Paced(), [task(7)], GREEDY, 1)
    assert alone.seconds == pytest.approx(0.07)
    assert alone.tokens == 7


def test_every_arm_has_every_place_in_the_order() -> None:
    client = Client("http://127.0.0.1:1")
    arms: list[Arm] = [RestArm(name, client, True) for name in ("a", "b")]

    def order(samplings: Sequence[Sampling]) -> list[tuple[int, str, float]]:
        return [
            (block, arm.name, sampling.temperature)
            for repeat in (0, 1)
            for block, arm, sampling in turns(arms, samplings, 2, repeat)
        ]

    alone = [(block, name) for block, name, _ in order([GREEDY])]
    assert alone[:4] == [(0, "a"), (0, "b"), (1, "b"), (1, "a")]
    assert alone[4:] == [(0, "b"), (0, "a"), (1, "a"), (1, "b")]
    both = order([GREEDY, SAMPLED])
    assert both[:4] == [(0, "a", 0.0), (0, "a", 1.0), (0, "b", 0.0), (0, "b", 1.0)]
    assert both[4:8] == [(1, "a", 1.0), (1, "b", 0.0), (1, "b", 1.0), (1, "a", 0.0)]
