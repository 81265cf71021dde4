"""The numbering of messages. Pure."""

from __future__ import annotations

from specwire.errors import DataLoss


class MessageCounter:
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
