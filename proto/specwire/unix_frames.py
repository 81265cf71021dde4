"""Messages between processes of one host, over a Unix socket.

Right after a forward the cores' caches hold nothing that gRPC's many threads need to pass a round
on; here one thread reads, and who sends writes. A name is one of Linux's abstract ones: it needs no
file, and is found from within one network namespace only.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar, cast

from google.protobuf.message import DecodeError, Message

from specwire.errors import DataLoss
from specwire.limits import MAX_ROUND_BYTES

_Message = TypeVar("_Message", bound=Message)

# Each message comes after its length in bytes.
_LENGTH = struct.Struct("<I")
# What the system holds of messages that are not read yet, if it allows that much: a round that it
# has no room for waits for a thread.
_HELD_BYTES = 8 << 20


class FramedSocket:
    """Protobuf messages on a stream socket. Any thread may send, one receives."""

    def __init__(self, connection: socket.socket) -> None:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.setsockopt(socket.SOL_SOCKET, option, _HELD_BYTES)
        self._socket = connection
        # What was received last: to touch new memory takes longer than to fill it.
        self._received = bytearray()
        self._sending = threading.Lock()
        # Frames, or what is left of one, that the socket had no room for.
        self._behind: deque[memoryview] = deque()

    def send(self, message: Message) -> None:
        """Send without waiting. If the other end is gone, `receive` says so and this does not."""
        body = message.SerializeToString()
        parts = [memoryview(_LENGTH.pack(len(body))), memoryview(body)]
        with self._sending:
            behind = bool(self._behind)
            self._behind += parts if behind else self._put(parts)
            if self._behind and not behind:
                threading.Thread(target=self._catch_up, daemon=True).start()

    def receive(self, kind: type[_Message]) -> _Message | None:
        """Wait for the next message; None once either end has closed.

        Raises:
            DataLoss: too long a message, or one that is none of `kind`.
        """
        head = self._read(_LENGTH.size)
        if head is None:
            return None
        (length,) = _LENGTH.unpack(head)
        if length > MAX_ROUND_BYTES:
            raise DataLoss(f"a message has {length} bytes, at most {MAX_ROUND_BYTES}.")
        body = self._read(length)
        if body is None:
            return None
        try:
            return kind.FromString(cast("bytes", body))  # any buffer will do
        except DecodeError:
            raise DataLoss("a message could not be decoded.") from None

    def close(self) -> None:
        """End both directions; who waits in `receive` gets None."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with self._sending:
            self._socket.close()

    def _put(self, parts: list[memoryview]) -> list[memoryview]:
        """Send what there is room for; returns what needs more sending."""
        try:
            sent = self._socket.sendmsg(parts, (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return parts
        except OSError:
            return []
        rest: list[memoryview] = []
        for part in parts:
            if sent < len(part):
                rest.append(part[sent:])
            sent = max(0, sent - len(part))
        return rest

    def _catch_up(self) -> None:
        """Send what is behind, until nothing is."""
        while True:
            with contextlib.suppress(OSError):
                self._socket.sendall(self._behind[0])
            with self._sending:
                self._behind.popleft()
                if not self._behind:
                    return

    def _read(self, count: int) -> memoryview | None:
        """The next bytes, until the next call; None where there are not as many."""
        if len(self._received) < count:
            self._received = bytearray(count)
        data = memoryview(self._received)[:count]
        rest = data
        with contextlib.suppress(OSError):
            while rest and (read := self._socket.recv_into(rest, 0, socket.MSG_WAITALL)):
                rest = rest[read:]
        return None if rest else data


def serve(name: str, take: Callable[[FramedSocket], None]) -> socket.socket:
    """Listen by a name, and call `take` with each connection on a thread of its own.

    Returns the listener; `stop` ends it.

    Raises:
        OSError: the system has no abstract Unix sockets, or the name is taken.
    """
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0{name}")
    listener.listen()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=take, args=(FramedSocket(connection),), daemon=True).start()

    threading.Thread(target=accept, name="same host", daemon=True).start()
    return listener


def stop(listener: socket.socket) -> None:
    """Take no more connections. Those that there are stay."""
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for one
    listener.close()


def connect(name: str) -> FramedSocket | None:
    """Connect to a listener; None where there is none of that name on this host."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(f"\0{name}")
    except OSError:
        connection.close()
        return None
    return FramedSocket(connection)
