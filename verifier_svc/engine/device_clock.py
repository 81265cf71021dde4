"""When a device reaches points of its work, in seconds of `time.perf_counter`. Nobody waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from speckernels.device import is_async


class DeviceClock(Protocol):
    """Marks points in the work that a device is given."""

    def mark(self) -> Any:
        """The point that has been reached in giving it work."""

    def when(self, mark: Any) -> float | None:
        """When the device had done all work before a mark; None where it has not yet."""


class HostClock:
    """Of a CPU, which has done its work when the call returns."""

    def mark(self) -> float:
        """See `DeviceClock`."""
        return time.perf_counter()

    def when(self, mark: float) -> float:
        """See `DeviceClock`."""
        return mark


class EventClock:
    """Of a GPU, by events in its stream, which tell of the time between two of them.

    The host's time is known of an event that found the stream empty: others are so long after the
    last of those.
    """

    def __init__(
        self, event: Callable[[], Any], idle: Callable[[], bool], now: Callable[[], float]
    ) -> None:
        """Take what makes an event and records it, and whether the stream is empty."""
        self._event = event
        self._idle = idle
        self._now = now
        self._known: tuple[Any, float] | None = None

    def mark(self) -> Any:
        """See `DeviceClock`."""
        idle = self._idle()
        event = self._event()
        if idle or self._known is None:
            self._known = event, self._now()
        return event

    def when(self, mark: Any) -> float | None:
        """See `DeviceClock`; of marks since the stream was last found empty."""
        assert self._known is not None
        first, at = self._known
        # The one may be the later of the two.
        if not (mark.query() and first.query()):
            return None
        milliseconds: float = first.elapsed_time(mark)
        return at + 1e-3 * milliseconds


def clock_of(device: torch.device) -> DeviceClock:
    """The clock of a device, for the thread that gives it work."""
    if not is_async(device):
        return HostClock()

    make: Callable[..., Any] = torch.cuda.Event

    def event() -> Any:
        made = make(enable_timing=True)
        made.record(torch.cuda.current_stream(device))
        return made

    def idle() -> bool:
        return torch.cuda.current_stream(device).query()

    return EventClock(event, idle, time.perf_counter)
