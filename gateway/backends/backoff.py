"""Waiting between tries."""

from __future__ import annotations

import asyncio

LONGEST_WAIT = 1.0


class Backoff:
    """Waits twice as long each time, up to a second."""

    def __init__(self, first: float = 0.05) -> None:
        self._first = first
        self._next = first

    def reset(self) -> None:
        self._next = self._first

    async def wait(self) -> None:
        delay, self._next = self._next, min(2 * self._next, LONGEST_WAIT)
        await asyncio.sleep(delay)
