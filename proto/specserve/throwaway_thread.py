"""Work of a start on a thread that ends with it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from specserve.malloc_trim import malloc_trim

P = ParamSpec("P")
T = TypeVar("T")


def in_throwaway_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` on a thread of its own, wait for it, and give back what it freed.

    OpenMP keeps a team of threads for each thread that has run operators, and once all teams have
    more threads than there are cores, libgomp lets none of them spin: a barrier then costs a
    sleep. A service whose engine has a thread of its own must not leave its main thread a team.
    """
    with ThreadPoolExecutor(1) as thread:
        result = thread.submit(function, *args, **kwargs).result()
    malloc_trim()
    return result
