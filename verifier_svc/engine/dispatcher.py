"""From the engine's thread to the calls that its events belong to."""

from __future__ import annotations

import asyncio
import itertools

from verifier_svc.engine.engine import Outbox
from verifier_svc.request.types import Event


class Dispatcher:
    """Brings events from the engine's thread to the queues of their calls."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queues: dict[int, asyncio.Queue[Event]] = {}
        self._ids = itertools.count(1)

    @property
    def calls(self) -> int:
        """Calls in flight."""
        return len(self._queues)

    def open(self) -> tuple[int, asyncio.Queue[Event]]:
        """A new sequence id and the queue of its events."""
        seq, events = next(self._ids), asyncio.Queue[Event]()
        self._queues[seq] = events
        return seq, events

    def close(self, seq: int) -> None:
        """Events of the sequence are dropped from now on."""
        self._queues.pop(seq, None)

    def deliver(self, outbox: Outbox) -> None:
        """Take events, from any thread."""
        self._loop.call_soon_threadsafe(self._dispatch, outbox)

    def _dispatch(self, outbox: Outbox) -> None:
        for seq, event in outbox:
            if (events := self._queues.get(seq)) is not None:
                events.put_nowait(event)
