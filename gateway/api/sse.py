"""Server-sent events, and what happens when the client goes away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.requests import Request
from starlette.types import Message, Send

from gateway.json_response import to_json
from gateway.tasks import end

T = TypeVar("T")

DONE = format_sse_event(data_str="[DONE]")


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


def event(document: Mapping[str, Any]) -> bytes:
    """Write one event whose data is `document`."""
    return format_sse_event(data_str=to_json(document))


class EventStream(EventSourceResponse):
    """Sends events as they come, and comments while none comes, so that nobody hangs up.

    The generator is closed when the client goes away.
    """

    def __init__(
        self, events: AsyncGenerator[bytes], headers: Mapping[str, str], keep_alive: float
    ) -> None:
        """`keep_alive`: seconds of silence before a comment."""
        # A proxy that gathers events would undo the streaming.
        quiet = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, headers={**quiet, **headers})
        self._events = events
        self._keep_alive = keep_alive
        self._sending = asyncio.Lock()
        # Of time.monotonic; None once everything is sent.
        self._last: float | None = time.monotonic()

    async def stream_response(self, send: Send) -> None:
        async def noted(message: Message) -> None:
            async with self._sending:
                whole = message["type"] == "http.response.body" and not message.get("more_body")
                self._last = None if whole else time.monotonic()
                await send(message)

        comments = asyncio.create_task(self._comment(send))
        try:
            async with aclosing(self._events):
                await super().stream_response(noted)
        finally:
            await end([comments])

    async def _comment(self, send: Send) -> None:
        comment = {"type": "http.response.body", "body": KEEPALIVE_COMMENT, "more_body": True}
        while self._last is not None:
            if (left := self._last + self._keep_alive - time.monotonic()) > 0:
                await asyncio.sleep(left)
                continue
            async with self._sending:
                if self._last is not None:
                    await send(comment)
                    self._last = time.monotonic()


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
