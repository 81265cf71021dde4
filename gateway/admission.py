"""How many choices may be generated at once, and whether new ones are taken at all."""

from __future__ import annotations

import asyncio

from gateway.errors import invalid, overloaded, stopping


class Admission:
    """Counts places. A request takes one for each of its choices."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.taken = 0
        self.draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self, places: int) -> None:
        """Take places, to be given back with `leave`.

        Raises:
            ApiError: 503 while draining, 429 if too few are free, 400 if there never are enough.
        """
        if self.draining:
            raise stopping()
        if places > self._capacity:
            raise invalid("n", f"prompts times n may be at most {self._capacity}.")
        if self.taken + places > self._capacity:
            raise overloaded(f"{self.taken} choices are being generated already; try again.")
        self.taken += places
        self._idle.clear()

    def leave(self, places: int) -> None:
        self.taken -= places
        if not self.taken:
            self._idle.set()

    async def drain(self, grace: float) -> bool:
        """Take nothing new and wait for what runs. Return whether all ended within `grace`."""
        self.draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), grace)
        except TimeoutError:
            return False
        return True
