"""How many threads torch's operators get, thread by thread."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from specserve import cpu_affinity


def limit_threads(count: int) -> None:
    """Run the operators that this thread calls on `count` threads; other threads keep theirs."""
    others = torch.get_num_threads()
    torch.set_num_threads(count)
    # A thread that has called no operator yet takes the number that was set last, by any thread.
    last = threading.Thread(target=torch.set_num_threads, args=(others,))
    last.start()
    last.join()


@contextmanager
def half_the_threads() -> Iterator[None]:
    """Run the operators that this thread calls on half of its threads, one at least.

    For work that nobody waits for: a team that has all cores would stop a target on the same ones,
    and wait itself for the thread that the target does not let run. The calling thread is not held
    on its core meanwhile, but goes where the target's threads have done their share of a step.
    """
    count = torch.get_num_threads()
    torch.set_num_threads(max(1, count // 2))
    try:
        with cpu_affinity.unbound():
            yield
    finally:
        torch.set_num_threads(count)
