"""How tasks that run beside the others end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

# Seconds after which a task that was cancelled and still runs is cancelled again.
_AGAIN = 0.5


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they have ended, with whatever result.

    Once is not enough: a library that awaits with a timeout can lose a cancellation that comes in
    the moment of its result, as `asyncio.wait_for` does up to Python 3.11.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_AGAIN)
