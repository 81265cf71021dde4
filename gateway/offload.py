"""Work that may take long, beside the event loop that everybody's streams are written from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# Bytes, characters or tokens from which on work goes to a thread. Less is done sooner than one
# could begin.
LARGE = 16_384


async def aside(size: int, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Return what `work` does, on a thread if the `size` of its input is large.

    A thread holds up the loop only as long as one call into C keeps the interpreter's lock, so
    that `work` has to take large input in pieces.
    """
    if size < LARGE:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)
