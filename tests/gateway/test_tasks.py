"""Tasks end when they are told to, even where a library swallows a cancellation."""

from __future__ import annotations

import asyncio

from gateway.tasks import end


async def test_a_task_that_loses_a_cancellation_is_cancelled_again() -> None:
    lost = 0

    async def stubborn() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if lost == 2:
                    raise
                lost += 1

    tasks = [asyncio.create_task(stubborn()), asyncio.create_task(asyncio.sleep(60))]
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await end(tasks)
    assert lost == 2
    assert all(task.cancelled() for task in tasks)


async def test_tasks_that_failed_or_ended_are_no_hindrance() -> None:
    async def failing() -> None:
        raise OSError("gone")

    task = asyncio.create_task(failing())
    await asyncio.wait({task})
    await end([task])
    await end([])
    assert isinstance(task.exception(), OSError)
