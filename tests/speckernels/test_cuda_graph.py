"""Recording on a device that behaves as torch's allocator and streams do; see `FakeCuda`."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import structlog
import torch

from speckernels import CapturedGraph, CudaGraphCapture, cuda_graph
from speckernels.cuda_graph import Work
from tests.support.fake_cuda import FakeCuda

HERE = torch.device("cuda", 0)


@pytest.fixture(params=["2.11", "2.13"])
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda(request.param)
    fake.install(monkeypatch)
    # Of this test alone: a fake's graphs need not outlive it.
    monkeypatch.setattr(cuda_graph, "_graphs", [], raising=False)
    return fake


def squares(cuda: FakeCuda, device: int = 0) -> tuple[Work, torch.Tensor]:
    """Work that squares the number which it returns beside it."""
    number, squared = torch.zeros(1), torch.zeros(1)

    def work() -> tuple[torch.Tensor]:
        cuda.multiply(lambda: squared.copy_(number * number), device)
        return (squared,)

    return work, number


def check(recorded: Any, number: torch.Tensor) -> None:
    (result,), replay = recorded
    for value in (3.0, 5.0):
        number.fill_(value)
        replay()
        assert result == value * value


def failing(cuda: FakeCuda, fail: Callable[[], object]) -> Work:
    """Work that fails once it is captured, after the two calls before that."""
    calls = iter(range(3))

    def work() -> tuple[torch.Tensor]:
        cuda.multiply(lambda: None)
        if next(calls) == 2:
            fail()
        return (torch.zeros(1),)

    return work


def test_what_was_recorded_does_as_it_did(cuda: FakeCuda) -> None:
    recorder = CudaGraphCapture(HERE)
    work, number = squares(cuda)
    recorded = recorder(work)
    assert cuda.current_stream().number == 0
    check(recorded, number)


def test_a_graph_that_is_dropped_is_followed_by_others(cuda: FakeCuda) -> None:
    """In 2.11 a workspace from the memory of graphs that are all gone forbids any further one."""
    recorder = CudaGraphCapture(HERE)
    for _ in range(3):
        work, number = squares(cuda)
        check(recorder(work), number)
        gc.collect()
    assert len(cuda.captured) == 3


def test_a_graph_that_is_dropped_leaves_others_their_workspace(cuda: FakeCuda) -> None:
    """From 2.12 on the workspace of a stream is freed with any graph that was captured on it."""
    (work, number), (other, _) = squares(cuda), squares(cuda)
    recorder, another = CudaGraphCapture(HERE), CudaGraphCapture(HERE)
    recorded = recorder(work)
    recorder(other)
    another(other)
    del another
    gc.collect()
    check(recorded, number)


def test_a_capture_that_fails_is_the_last_of_its_memory(cuda: FakeCuda) -> None:
    recorder, (work, number) = CudaGraphCapture(HERE), squares(cuda)
    recorded, mine = recorder(work), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(mine):
        with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
            recorder(failing(cuda, cuda.wait))
        assert cuda.current_stream() is mine
    assert cuda.current_stream().number == 0
    with pytest.raises(RuntimeError, match="an earlier capture has failed"):
        recorder(work)
    assert len(cuda.captured) == 2
    check(recorded, number)


def test_what_fails_without_the_device_leaves_the_stream_too(cuda: FakeCuda) -> None:
    def fail() -> None:
        raise ValueError("no such layer")

    recorder = CudaGraphCapture(HERE)
    with pytest.raises(ValueError, match="no such layer"):
        recorder(failing(cuda, fail))
    assert cuda.current_stream().number == 0
    with pytest.raises(RuntimeError, match="an earlier capture has failed"):
        recorder(squares(cuda)[0])


def test_others_record_after_a_failure_as_far_as_torch_can(cuda: FakeCuda) -> None:
    """2.11 believes in a capture for ever, which it says before it begins another."""
    with pytest.raises(RuntimeError, match="not permitted"):
        CudaGraphCapture(HERE)(failing(cuda, cuda.wait))
    work, number = squares(cuda)
    recording = CapturedGraph(CudaGraphCapture(HERE))
    with structlog.testing.capture_logs() as logs:
        recorded = recording.attempt(lambda record: record(work))
    assert recording.alive == (recorded is not None) == (cuda.version == "2.13")
    assert cuda.current_stream().number == 0
    if recorded is not None:
        check(recorded, number)
    else:
        assert recording.ended == "captures_underway.empty() INTERNAL ASSERT FAILED"
        assert [log["reason"] for log in logs] == [recording.ended]
        work()  # goes on by operators


def test_two_threads_take_turns(cuda: FakeCuda) -> None:
    """A capture begins with a wait for the device, which would end that of another thread."""
    begun, (work, number), (other, its_number) = threading.Event(), squares(cuda), squares(cuda)
    second, recorded = CudaGraphCapture(HERE), []
    calls = iter(range(3))

    def slow() -> tuple[torch.Tensor, ...]:
        results = work()
        if next(calls) == 2:
            thread.start()
            # It comes to no work while this one is captured.
            assert not begun.wait(0.2)
        return results

    def begin() -> tuple[torch.Tensor, ...]:
        begun.set()
        return other()

    thread = threading.Thread(target=lambda: recorded.append(second(begin)))
    mine = CudaGraphCapture(HERE)(slow)
    thread.join()
    check(mine, number)
    check(recorded[0], its_number)


def test_another_thread_works_on_the_device_meanwhile(cuda: FakeCuda) -> None:
    done: list[int] = []

    def other() -> None:
        cuda.multiply(lambda: done.append(1))
        cuda.wait()

    work, number = squares(cuda)

    def beside() -> tuple[torch.Tensor, ...]:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        return work()

    check(CudaGraphCapture(HERE)(beside), number)
    assert len(done) == 3


def test_a_device_other_than_the_current_one_is_recorded(cuda: FakeCuda) -> None:
    work, number = squares(cuda, device=1)
    recorded = CudaGraphCapture(torch.device("cuda", 1))(work)
    assert cuda.device == 0
    assert cuda.current_stream(torch.device("cuda", 1)).number == 0
    check(recorded, number)
