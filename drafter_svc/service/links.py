"""The streams of one verifier, as the event loop sees them."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from specwire import codec
from specwire.message_counter import MessageCounter
from specwire.messages import CatchUpAck, Proposals
from specwire.unix_frames import FramedSocket
from specwire.v1 import drafter_pb2 as pb

# Bulk messages of a link that may wait for the engine; more are not read from the connection.
_BULK_WAITING = 32

T = TypeVar("T")


class Outbox(Generic[T]):
    """Answers on their way to a stream, until it ends or an error ends it."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[T | Exception | None] = asyncio.Queue()

    def put(self, answer: T) -> None:
        """Send `answer` after those before it."""
        self._queue.put_nowait(answer)

    def end(self, error: Exception | None = None) -> None:
        """End the stream after the answers before it, with an error or without."""
        self._queue.put_nowait(error)

    async def __aiter__(self) -> AsyncIterator[T]:
        while (answer := await self._queue.get()) is not None:
            if isinstance(answer, Exception):
                raise answer
            yield answer


@dataclass(slots=True, eq=False)
class Link:
    """One verifier: its Draft stream, and its Bulk stream where that is open.

    `frames` carry the rounds and their answers in place of the Draft stream, where both ends are
    on the same host.
    """

    id: int
    proposals: Outbox[Proposals] = field(default_factory=Outbox)
    numbers: MessageCounter = field(default_factory=lambda: MessageCounter(1))
    frames: FramedSocket | None = None
    acks: Outbox[CatchUpAck] | None = None
    bulk_room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_BULK_WAITING))

    def encode(self, answer: Proposals) -> pb.DraftResponse:
        """The next message of answers."""
        number = self.numbers.take()
        return codec.encode_proposals(number, answer.drafts, answer.needs, answer.cost)

    def deliver(self, answer: Proposals | CatchUpAck) -> None:
        """Pass an answer of the engine on to its stream."""
        if isinstance(answer, Proposals):
            self.proposals.put(answer)
            return
        self.bulk_room.release()
        if self.acks is not None:
            self.acks.put(answer)

    def end(self, error: Exception) -> None:
        """End both streams."""
        self.proposals.end(error)
        if self.acks is not None:
            self.acks.end(error)
