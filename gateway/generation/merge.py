"""Several streams as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from gateway.generation.output import OutputDelta


async def merge(
    streams: Sequence[AsyncGenerator[OutputDelta]],
) -> AsyncGenerator[tuple[int, OutputDelta]]:
    """Yield (index, piece) of all streams as they come; the first failure ends them all."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for piece in only:
                yield 0, piece
        return
    arrived: asyncio.Queue[tuple[int, OutputDelta | Exception | None]] = asyncio.Queue(len(streams))

    async def pump(index: int, stream: AsyncGenerator[OutputDelta]) -> None:
        try:
            async with aclosing(stream):
                async for piece in stream:
                    await arrived.put((index, piece))
            await arrived.put((index, None))
        except Exception as error:
            await arrived.put((index, error))

    pumps = [asyncio.create_task(pump(i, stream)) for i, stream in enumerate(streams)]
    try:
        running = len(pumps)
        while running:
            index, item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield index, item
    finally:
        for task in pumps:
            task.cancel()
