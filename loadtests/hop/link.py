"""A link to an echo, and rounds over it."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median

import torch

from loadtests.common.result import RequestFailed
from loadtests.hop.echo import TOKENS, shape_of
from speckernels.tensor_codec import pack
from specserve.settings import StartError
from specwire.messages import (
    AppendEntries,
    DraftBudget,
    DrafterUp,
    DraftEvent,
    Proposals,
    SequenceContext,
)
from verifier_svc.speculation.grpc_client import DrafterClient

UNIX, GRPC = "Unix socket", "gRPC"
SECONDS = 30.0
# Rows of sequences in turn: two drafts in three were right, on the mean.
_ROWS = (2, 3)


@dataclass(frozen=True, slots=True)
class Block:
    """Rounds of one size by one way. Times are seconds of a round.

    Medians: `pack` and `send`, which packs as well, are processor time of the thread that sends;
    `there_and_back` is the time from there to the answer. Means: `verifier` and `drafter` are
    processor time of all threads of either process.
    """

    way: str
    rows: int
    repeat: int
    pack: float
    send: float
    there_and_back: float
    verifier: float
    drafter: float


class Link:
    """A verifier's end."""

    def __init__(self, way: str, width: int, address: str, pid: int) -> None:
        """Take where the echo listens, and the number of its process."""
        self.way = way
        self._features = torch.randn(2, 1024, width).to(torch.bfloat16)
        self._echo = Path(f"/proc/{pid}/task")
        self._events: queue.SimpleQueue[DraftEvent] = queue.SimpleQueue()
        self._port = DrafterClient(address, shape_of(width))
        self._link = 0

    async def open(self) -> None:
        """Link; the echo listens.

        Raises:
            RequestFailed: it refuses.
        """
        self._port.start(self._events.put)
        event = await asyncio.to_thread(self._next)
        if not isinstance(event, DrafterUp):
            raise RequestFailed(f"{self.way}: {event} came in place of a link.")
        self._link = event.link

    async def close(self) -> None:
        """Drop the link."""
        await self._port.close()

    def run(self, rows: int, rounds: int, repeat: int) -> Block:
        """Send rounds of so many rows, each once the one before is answered.

        Raises:
            RequestFailed: the link broke, or an answer did not come.
        """
        before = time.process_time(), self._spent()
        times = [self._round(rows, number) for number in range(rounds)]
        after = time.process_time(), self._spent()
        verifier, drafter = ((b - a) / rounds for a, b in zip(before, after, strict=True))
        packed, sent, whole = (median(each) for each in zip(*times, strict=True))
        return Block(self.way, rows, repeat, packed, sent, whole, verifier - packed, drafter)

    def _round(self, rows: int, number: int) -> tuple[float, float, float]:
        extends, features = self._message(rows, number)
        started = time.thread_time()
        pack(*features)  # once for the clock, and once to be sent
        packed = time.thread_time()
        began = time.perf_counter()
        self._port.round(self._link, extends, features, ())
        sent = time.thread_time()
        event = self._next()
        ended = time.perf_counter()
        if not isinstance(event, Proposals) or len(event.drafts) != len(extends):
            raise RequestFailed(f"{self.way}: {event} came in answer to a round.")
        return packed - started, sent - packed, ended - began

    def _message(self, rows: int, number: int) -> tuple[list[AppendEntries], list[torch.Tensor]]:
        """Rows of many sequences, from another place of memory each time."""
        extends: list[AppendEntries] = []
        features: list[torch.Tensor] = []
        pool, counts = self._features[number % 2], cycle(_ROWS)
        while rows:
            count = min(rows, next(counts))
            rows -= count
            seq = len(extends) + 1
            opening = SequenceContext(first_token=1, output_start=1) if not number else None
            start = 2 * number
            extends.append(
                AppendEntries(seq, start, (7,) * count, DraftBudget(len(TOKENS)), opening)
            )
            at = 3 * seq % (len(pool) - count)
            features.append(pool[at : at + count])
        return extends, features

    def _next(self) -> DraftEvent:
        try:
            return self._events.get(timeout=SECONDS)
        except queue.Empty:
            raise RequestFailed(f"{self.way}: no answer came for {SECONDS:.0f} s.") from None

    def _spent(self) -> float:
        """Processor time of the echo's threads, in seconds."""
        each = (task.read_text().split()[0] for task in self._echo.glob("*/schedstat"))
        return sum(map(int, each)) * 1e-9


@asynccontextmanager
async def linked(way: str, width: int) -> AsyncIterator[Link]:
    """A link to an echo in a process of its own, which ends with the block.

    Raises:
        StartError: it does not start.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = (
        *(sys.executable, "-m", "loadtests.hop.echo", "--listen", f"127.0.0.1:{port}"),
        *("--width", str(width), "--same-host", "on" if way == UNIX else "off"),
    )
    process = await asyncio.create_subprocess_exec(*command)
    link = Link(way, width, f"127.0.0.1:{port}", process.pid)
    try:
        while not _listens(port):
            if process.returncode is not None:
                raise StartError("The drafter that echoes does not start.")
            await asyncio.sleep(0.1)
        await link.open()
        yield link
    finally:
        await link.close()
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False
