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
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from specwire.errors import DataLoss

_Message = TypeVar("_Message", bound=Message)

# Each message comes after its length in bytes.
_LENGTH = struct.Struct("<I")
_MAX_BYTES = 4 << 20


class Frames:
    """Protobuf messages on a stream socket. Any thread may send, one receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sending = threading.Lock()
        # Frames, or what is left of one, that the socket had no room for.
        self._behind: deque[memoryview] = deque()

    def send(self, message: Message) -> None:
        """Send without waiting. If the other end is gone, `receive` says so and this does not."""
        body = message.SerializeToString()
        frame = memoryview(_LENGTH.pack(len(body)) + body)
        with self._sending:
            if not self._behind:
                frame = frame[self._put(frame) :]
            if frame:
                self._behind.append(frame)
                if len(self._behind) == 1:
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
        if length > _MAX_BYTES:
            raise DataLoss(f"a message has {length} bytes, at most {_MAX_BYTES}.")
        body = self._read(length)
        if body is None:
            return None
        try:
            return kind.FromString(body)
        except DecodeError:
            raise DataLoss("a message could not be decoded.") from None

    def close(self) -> None:
        """End both directions; who waits in `receive` gets None."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with self._sending:
            self._socket.close()

    def _put(self, frame: memoryview) -> int:
        """Bytes of `frame` that need no more sending."""
        try:
            return self._socket.send(frame, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            return len(frame)

    def _catch_up(self) -> None:
        """Send what is behind, until nothing is."""
        while True:
            with contextlib.suppress(OSError):
                self._socket.sendall(self._behind[0])
            with self._sending:
                self._behind.popleft()
                if not self._behind:
                    return

    def _read(self, count: int) -> bytes | None:
        data = bytearray(count)
        rest = memoryview(data)
        with contextlib.suppress(OSError):
            while rest and (read := self._socket.recv_into(rest)):
                rest = rest[read:]
        return None if rest else bytes(data)


def serve(name: str, take: Callable[[Frames], None]) -> socket.socket:
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
                threading.Thread(target=take, args=(Frames(connection),), daemon=True).start()

    threading.Thread(target=accept, name="same host", daemon=True).start()
    return listener


def stop(listener: socket.socket) -> None:
    """Take no more connections. Those that there are stay."""
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for one
    listener.close()


def connect(name: str) -> Frames | None:
    """Connect to a listener; None where there is none of that name on this host."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(f"\0{name}")
    except OSError:
        connection.close()
        return None
    return Frames(connection)
