"""Times of a device's work, read without a wait."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from verifier_svc.engine.device_clock import EventClock, HostClock, clock_of


@dataclass
class Stream:
    """A device that runs what it is given in turn; time passes as a test says."""

    now: float = 100.0
    #: When all that it was given will have been done.
    busy_until: float = 100.0
    lag: float = 0.0
    events: list[Event] = field(default_factory=list)

    def give(self, seconds: float) -> None:
        self.busy_until = max(self.busy_until, self.now) + seconds

    def idle(self) -> bool:
        return self.busy_until <= self.now

    def event(self) -> Event:
        self.events.append(Event(self, max(self.busy_until, self.now) + self.lag))
        return self.events[-1]

    @property
    def clock(self) -> EventClock:
        return EventClock(self.event, self.idle, lambda: self.now)


@dataclass
class Event:
    """As torch's: the time between two is only told once both are there."""

    stream: Stream
    at: float

    def query(self) -> bool:
        return self.at <= self.stream.now

    def elapsed_time(self, end: Event) -> float:
        assert self.query()
        assert end.query()
        return 1e3 * (end.at - self.at)


def test_a_step_takes_what_the_device_takes_and_not_what_queueing_does() -> None:
    stream = Stream()
    clock = stream.clock
    for _ in range(3):
        started = stream.now
        begun = clock.mark()
        stream.now += 0.0005
        stream.give(0.006)
        ran = clock.mark()
        assert clock.when(ran) is None, "it is queued only"
        stream.give(0.001)
        stream.now = stream.busy_until + 0.0001
        assert clock.when(begun) == pytest.approx(started)
        assert clock.when(ran) == pytest.approx(started + 0.0065)
        stream.now += 0.002


def test_work_of_others_before_a_step_is_not_its_own() -> None:
    stream = Stream()
    clock = stream.clock
    first = clock.mark()
    stream.give(0.013)  # rows of a prompt that nobody waits for
    stream.now += 0.001
    begun = clock.mark()
    stream.give(0.006)
    ran = clock.mark()
    stream.now = 100.02
    assert clock.when(first) == pytest.approx(100.0)
    assert clock.when(begun) == pytest.approx(100.013)
    assert clock.when(ran) == pytest.approx(100.019)


def test_a_mark_before_the_last_that_found_the_stream_empty_waits_for_that() -> None:
    stream = Stream()
    clock = stream.clock
    begun = clock.mark()
    stream.give(0.001)
    stream.now = stream.busy_until
    stream.lag = 0.0002  # the event itself takes its time
    ran = clock.mark()
    assert clock.when(begun) is clock.when(ran) is None
    stream.now += 0.0003
    assert clock.when(ran) == pytest.approx(100.001)
    assert clock.when(begun) == pytest.approx(99.9998, abs=1e-6)


def test_a_cpu_has_done_its_work_when_the_call_returns() -> None:
    clock = clock_of(torch.device("cpu"))
    assert isinstance(clock, HostClock)
    first, second = clock.mark(), clock.mark()
    assert first <= second
    assert clock.when(first) == first
