"""Work of a start on a thread that ends with it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def apart(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` on a thread of its own, and wait for it.

    OpenMP keeps a team of threads for each thread that has run operators, and once all teams have
    more threads than there are cores, libgomp lets none of them spin: a barrier then costs a
    sleep. A service whose engine has a thread of its own must not leave its main thread a team.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *args, **kwargs).result()
