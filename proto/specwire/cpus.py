"""The CPUs of this process.

An OpenMP runtime that binds its threads takes the one that loads it for the first of them: all
others that the process starts would share that one's CPU. Packages whose programs load torch
import this first, and `take_all` gives the main thread back what it had.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_ALL = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def take_all() -> None:
    """Let the calling thread, and those that it starts, run wherever the process could."""
    if _ALL is not None:
        os.sched_setaffinity(0, _ALL)


@contextmanager
def unbound() -> Iterator[None]:
    """Let the calling thread run wherever the process could, for as long as it takes."""
    if _ALL is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, _ALL)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
