"""Streams that decode while a prompt arrives, and the time that each of their tokens took."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

from loadtests.common.client import Client
from loadtests.common.result import RequestFailed, Result

ARRIVAL_TOKENS = 4
T = TypeVar("T")


@dataclass(slots=True)
class Stream:
    """A request that decodes. Times are of `time.perf_counter`."""

    enough: int
    on_enough: Callable[[], None]
    tokens: int = 0
    chunks: list[tuple[float, int]] = field(default_factory=list)

    def __call__(self, tokens: int) -> None:
        """Take note of a chunk, after which there are so many tokens."""
        self.chunks.append((time.perf_counter(), tokens - self.tokens))
        if self.tokens < self.enough <= tokens:
            self.on_enough()
        self.tokens = tokens

    def times(self, since: float, until: float, *, whole: bool) -> list[float]:
        """The time of each token whose gap lies in the span as a `whole`, or overlaps it."""
        times = []
        for (earlier, _), (later, count) in pairwise(self.chunks):
            inside = since <= earlier and later <= until
            if inside if whole else earlier < until and later > since:
                times += [(later - earlier) / count] * count
        return times


@dataclass(frozen=True, slots=True)
class Trial:
    """One arrival. Times are in seconds, one for each token of the streams."""

    repeat: int
    prompt_tokens: int
    first_token: float
    before: tuple[float, ...]
    during: tuple[float, ...]


async def arrive(
    client: Client,
    prompts: Sequence[str],
    text: str,
    repeat: int,
    *,
    before: int,
    max_tokens: int,
    speculation: bool,
) -> Trial:
    """Let `text` arrive once the stream of each prompt has `before` tokens.

    Raises:
        RequestFailed: a request failed, or a stream has had `max_tokens` before the text's first.
    """
    ready = asyncio.Semaphore(0)
    streams = [Stream(before, ready.release) for _ in prompts]

    def ask(text: str, tokens: int, stream: Stream | None = None) -> asyncio.Task[Result]:
        answer = client.chat(
            text,
            max_tokens=tokens,
            speculation=speculation,
            ignore_eos=True,
            on_tokens=stream,
        )
        return asyncio.create_task(answer)

    async def all_decode() -> None:
        for _ in streams:
            await ready.acquire()

    tasks = [
        ask(prompt, max_tokens, stream) for prompt, stream in zip(prompts, streams, strict=True)
    ]
    try:
        await _while_running(tasks, asyncio.create_task(all_decode()))
        arrived = time.perf_counter()
        answer = await _while_running(tasks, ask(text, ARRIVAL_TOKENS))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert answer.first_token is not None
    decoding = max(stream.chunks[0][0] for stream in streams)
    first = arrived + answer.first_token
    return Trial(
        repeat,
        answer.prompt_tokens,
        answer.first_token,
        tuple(t for s in streams for t in s.times(decoding, arrived, whole=True)),
        tuple(t for s in streams for t in s.times(arrived, first, whole=False)),
    )


async def _while_running(streams: Sequence[asyncio.Task[Result]], goal: asyncio.Task[T]) -> T:
    """Wait for `goal`, before which no stream may end.

    Raises:
        RequestFailed: one did.
    """
    try:
        done, _ = await asyncio.wait([goal, *streams], return_when=asyncio.FIRST_COMPLETED)
        if goal not in done:
            for stream in done:
                await stream  # says why it failed, if it did
            raise RequestFailed("A stream ended before the prompt was through; raise --max-tokens.")
        return await goal
    finally:
        goal.cancel()
