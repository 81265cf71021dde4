"""A round's gathering of drafts, and the numbering of messages. Pure: time is passed in."""

from __future__ import annotations

from collections.abc import Iterable

from specwire.errors import DataLoss


class Gathering:
    """The sequences whose answers a round still waits for, until its deadline."""

    def __init__(self) -> None:
        self._awaited: set[int] = set()
        self._deadline = 0.0

    def await_(self, seqs: Iterable[int], deadline: float) -> None:
        """Wait for `seqs` until `deadline`, in seconds of the caller's clock."""
        self._awaited = set(seqs)
        self._deadline = deadline

    def settle(self, seq: int) -> None:
        """An answer for `seq` came, or will not come."""
        self._awaited.discard(seq)

    def settle_all(self) -> None:
        """No answer will come: the drafter is gone."""
        self._awaited.clear()

    def remaining(self, now: float) -> float:
        """Seconds to wait before the round leaves; 0 if it leaves now."""
        return max(0.0, self._deadline - now) if self._awaited else 0.0

    @property
    def awaited(self) -> frozenset[int]:
        """Sequences that have not been answered."""
        return frozenset(self._awaited)


class Numbering:
    """Checks that the messages of a stream arrive without a gap."""

    def __init__(self, first: int) -> None:
        self._next = first

    def expect(self, number: int) -> None:
        """Take the next message's number.

        Raises:
            DataLoss: a message is missing or came twice.
        """
        if number != self._next:
            raise DataLoss(f"message {number} came where {self._next} was due.")
        self._next += 1

    def take(self) -> int:
        """The number of the next message to send."""
        number = self._next
        self._next += 1
        return number
