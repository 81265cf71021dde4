"""Server-sent events, and what happens when the client goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.requests import Request
from starlette.types import Send

T = TypeVar("T")

DONE = format_sse_event(data_str="[DONE]")


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


def event(document: Mapping[str, Any]) -> bytes:
    """Write one event whose data is `document`."""
    return format_sse_event(data_str=to_json(document))


def to_json(document: Mapping[str, Any]) -> str:
    """Write JSON without spaces, characters as they are."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


class EventStream(EventSourceResponse):
    """Sends events as they come. The generator is closed when the client goes away."""

    def __init__(self, events: AsyncGenerator[bytes], headers: Mapping[str, str]) -> None:
        # A proxy that gathers events would undo the streaming.
        quiet = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, headers={**quiet, **headers})
        self._events = events

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._events):
            await super().stream_response(send)


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Wait for `work`, but no longer than the client does.

    Raises:
        ClientGoneError: the client closed the connection; `work` was cancelled.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
