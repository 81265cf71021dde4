"""The drafts that were asked for and are not verified yet. Pure: time is passed in."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from specwire.draft import DraftCost


@dataclass(slots=True)
class Request:
    """Drafts asked for in one message, their longest chain of `length`: who waits how long.

    `beside` is whether the target ran meanwhile, for other sequences.
    """

    awaited: frozenset[int]
    started: float
    deadline: float
    length: int
    cost: DraftCost = field(default_factory=DraftCost)
    beside: bool = False


class Gathering:
    """The last request of each sequence, until the sequence is verified."""

    def __init__(self) -> None:
        self._requests: dict[int, Request] = {}
        self._open: set[int] = set()

    def ask(self, seqs: Iterable[int], request: Request) -> None:
        """Drafts of `seqs` have been asked for."""
        self._requests.update(dict.fromkeys(seqs, request))
        self._open |= request.awaited

    def settle(self, seq: int) -> None:
        """An answer for `seq` came, or will not come."""
        self._open.discard(seq)

    def drop(self, seq: int) -> None:
        """A sequence was verified, or has ended."""
        self._requests.pop(seq, None)
        self._open.discard(seq)

    def clear(self) -> None:
        """No answer will come: the drafter is gone."""
        self._requests.clear()
        self._open.clear()

    def remaining(self, now: float, resting: Collection[int] = ()) -> float:
        """Seconds to wait for those who do not rest; 0 if the step leaves now."""
        deadlines = (self._requests[seq].deadline for seq in self._open if seq not in resting)
        return max(0.0, max(deadlines, default=now) - now)

    def waits(self, seq: int) -> Request | None:
        """The request whose answer the sequence had to wait for."""
        request = self._requests.get(seq)
        return request if request is not None and seq in request.awaited else None

    def answered(self, seqs: Iterable[int]) -> list[Request]:
        """The requests that an answer for `seqs` belongs to."""
        return _distinct(self._requests[seq] for seq in seqs if seq in self._requests)

    def late(self, resting: Collection[int] = ()) -> list[Request]:
        """The requests that have an answer missing for those who do not rest."""
        return _distinct(self._requests[seq] for seq in self._open if seq not in resting)

    def longest(self, resting: Collection[int] = ()) -> int | None:
        """The longest chain that those who do not rest waited for; None if they did not wait."""
        requests = (self.waits(seq) for seq in self._requests if seq not in resting)
        return max((request.length for request in requests if request), default=None)

    def overlap(self, resting: Collection[int]) -> bool:
        """The others' step begins: whether drafts of those who rest are made beside it."""
        beside = _distinct(self._requests[seq] for seq in self._open if seq in resting)
        for request in beside:
            request.beside = True
        return bool(beside)


def _distinct(requests: Iterator[Request]) -> list[Request]:
    return list({id(request): request for request in requests}.values())
