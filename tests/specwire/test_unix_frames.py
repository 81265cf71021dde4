"""Messages over a Unix socket."""

from __future__ import annotations

import secrets
import socket
import struct
import threading
from collections.abc import Iterator
from queue import SimpleQueue

import pytest

from specwire import unix_frames
from specwire.errors import DataLoss
from specwire.unix_frames import FramedSocket
from specwire.v1 import drafter_pb2 as pb


@pytest.fixture
def ends() -> Iterator[tuple[FramedSocket, FramedSocket]]:
    """Two connected ends."""
    pair = [FramedSocket(end) for end in socket.socketpair()]
    yield pair[0], pair[1]
    for end in pair:
        end.close()


@pytest.fixture
def raw() -> Iterator[tuple[socket.socket, FramedSocket]]:
    """An end of bytes, and one of messages."""
    left, right = socket.socketpair()
    with left:
        yield left, FramedSocket(right)
    right.close()


def round_(number: int, size: int = 0) -> pb.DraftRequest:
    message = pb.Round(number=number)
    message.features.data = bytes(size)
    return pb.DraftRequest(round=message)


def test_messages_arrive_as_they_were_sent(ends: tuple[FramedSocket, FramedSocket]) -> None:
    for message in (round_(1), round_(2, 30_000), pb.DraftRequest()):
        ends[0].send(message)
        assert ends[1].receive(pb.DraftRequest) == message
    ends[1].send(round_(3))
    assert ends[0].receive(pb.DraftRequest) == round_(3)


def test_who_does_not_read_holds_nobody_up_and_misses_nothing(
    ends: tuple[FramedSocket, FramedSocket],
) -> None:
    sizes = [200_000, 3, 20_000_000, 0, *[1_000_000] * 20]  # far more than the socket takes
    for number, size in enumerate(sizes):
        ends[0].send(round_(number, size))
    for number, size in enumerate(sizes):
        assert ends[1].receive(pb.DraftRequest) == round_(number, size)
    ends[0].send(round_(40))
    assert ends[1].receive(pb.DraftRequest) == round_(40)


def test_threads_may_send_at_once(ends: tuple[FramedSocket, FramedSocket]) -> None:
    def send(first: int) -> None:
        for number in range(first, first + 50):
            ends[0].send(round_(number, 20_000))

    threads = [threading.Thread(target=send, args=(first,)) for first in (0, 1000)]
    for thread in threads:
        thread.start()
    numbers = []
    for _ in range(100):
        message = ends[1].receive(pb.DraftRequest)
        assert message is not None
        assert len(message.round.features.data) == 20_000
        numbers.append(message.round.number)
    assert [n for n in numbers if n < 1000] == list(range(50))
    assert [n for n in numbers if n >= 1000] == list(range(1000, 1050))


@pytest.mark.parametrize("own", [True, False])
def test_a_closed_end_is_the_end_for_who_waits(
    ends: tuple[FramedSocket, FramedSocket], own: bool
) -> None:
    got: SimpleQueue[object] = SimpleQueue()
    waiting = threading.Thread(target=lambda: got.put(ends[1].receive(pb.DraftRequest)))
    waiting.start()
    ends[1 if own else 0].close()
    waiting.join(10)
    assert got.get(timeout=1) is None


def test_sending_to_a_closed_end_is_no_error(ends: tuple[FramedSocket, FramedSocket]) -> None:
    ends[1].close()
    for _ in range(3):
        ends[0].send(round_(1, 500_000))
    assert ends[0].receive(pb.DraftRequest) is None
    ends[0].close()
    ends[0].send(round_(1))


def test_what_was_held_back_for_an_end_that_closes_is_dropped(
    ends: tuple[FramedSocket, FramedSocket],
) -> None:
    for number in range(10):
        ends[0].send(round_(number, 500_000))
    ends[1].close()
    assert ends[0].receive(pb.DraftRequest) is None


@pytest.mark.parametrize(
    ("data", "word"),
    [(struct.pack("<I", (64 << 20) + 1), "bytes"), (struct.pack("<I", 3) + b"\xff" * 3, "decoded")],
)
def test_what_is_no_message_is_data_loss(
    raw: tuple[socket.socket, FramedSocket], data: bytes, word: str
) -> None:
    raw[0].sendall(data)
    with pytest.raises(DataLoss, match=word):
        raw[1].receive(pb.DraftRequest)


@pytest.mark.parametrize("data", [b"\x05\x00", struct.pack("<I", 30) + b"abc"])
def test_half_a_message_is_none(raw: tuple[socket.socket, FramedSocket], data: bytes) -> None:
    raw[0].sendall(data)
    raw[0].close()
    assert raw[1].receive(pb.DraftRequest) is None


def test_connections_are_made_by_name_until_the_listener_stops() -> None:
    taken: SimpleQueue[FramedSocket] = SimpleQueue()
    name = f"test-{secrets.token_hex(8)}"
    assert unix_frames.connect(name) is None
    listener = unix_frames.serve(name, taken.put)
    with pytest.raises(OSError, match="in use"):
        unix_frames.serve(name, taken.put)
    pairs = [(unix_frames.connect(name), taken.get(timeout=10)) for _ in range(2)]
    unix_frames.stop(listener)
    assert unix_frames.connect(name) is None
    for number, (near, far) in enumerate(pairs):
        assert near is not None
        near.send(round_(number))
        assert far.receive(pb.DraftRequest) == round_(number)
        near.close()
        far.close()
