"""Work of a start leaves no thread behind."""

from __future__ import annotations

import threading

import pytest

from specserve.throwaway_thread import in_throwaway_thread


def test_the_thread_ends_and_its_result_stays() -> None:
    threads: list[threading.Thread] = []

    def work(number: int, *, more: int) -> int:
        threads.append(threading.current_thread())
        return number + more

    assert in_throwaway_thread(work, 1, more=2) == 3
    assert threads[0] is not threading.current_thread()
    assert not threads[0].is_alive()


def test_errors_arrive() -> None:
    with pytest.raises(ZeroDivisionError):
        in_throwaway_thread(lambda: 1 // 0)


def test_freed_memory_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    trim = "specserve.throwaway_thread.malloc_trim"
    monkeypatch.setattr(trim, lambda: order.append("given back"))
    in_throwaway_thread(order.append, "work")
    assert order == ["work", "given back"]
