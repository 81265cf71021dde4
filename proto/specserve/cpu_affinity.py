"""The CPUs of this process.

An OpenMP runtime that binds its threads takes the one that loads it for the first of them: all
others that the process starts would share that one's CPU. Packages whose programs load torch
import this first, and `take_all` gives the main thread back what it had.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from specserve.settings import StartError

_ALL = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def take_all() -> None:
    """Let the calling thread, and those that it starts, run wherever the process could."""
    if _ALL is not None:
        os.sched_setaffinity(0, _ALL)


def check_threads(environment: Mapping[str, str]) -> None:
    """Make sure that OpenMP can run as many threads as it is told to; it would go on in silence.

    Raises:
        StartError: what was given is no number of threads, or there are fewer CPUs.
    """
    given = environment.get("OMP_NUM_THREADS", "1")
    most = os.cpu_count() if _ALL is None else len(_ALL)
    # Nested teams have numbers of their own, behind commas.
    outer = given.split(",")[0].strip()
    if not (outer.isdecimal() and 1 <= int(outer) <= (most or 1)):
        raise StartError(f"OMP_NUM_THREADS: {given} must be a number of threads from 1 to {most}.")


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
