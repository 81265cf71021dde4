"""Rounds of a link whose drafter is on this host, by a Unix socket."""

from __future__ import annotations

from specwire.message_counter import MessageCounter
from specwire.unix_frames import FramedSocket, connect
from specwire.v1 import drafter_pb2 as pb


class UnixLink:
    """What takes the place of a Draft stream's messages after the first."""

    def __init__(self, link: int, frames: FramedSocket) -> None:
        self.link = link
        self._frames = frames
        self._numbers = MessageCounter(1)

    @classmethod
    def reach(cls, name: str, hello: pb.Hello) -> UnixLink | None:
        """Connect by the name that the drafter announced; None where it is not on this host."""
        frames = connect(name) if name else None
        if frames is None:
            return None
        frames.send(pb.DraftRequest(hello=hello))
        return cls(hello.link_id, frames)

    def send(self, request: pb.DraftRequest) -> None:
        """Number the next round and send it, without waiting. Called from one thread."""
        request.round.number = self._numbers.take()
        self._frames.send(request)

    def receive(self) -> pb.DraftResponse | None:
        """Wait for the next answer; None once either end has closed.

        Raises:
            DataLoss: see `FramedSocket.receive`.
        """
        return self._frames.receive(pb.DraftResponse)

    def close(self) -> None:
        """Drop the connection; who waits for an answer gets None."""
        self._frames.close()
