"""The drafts that were asked for and are not verified yet. Pure: time is passed in."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from specwire.messages import DraftCost


@dataclass(slots=True)
class DraftRequest:
    """Drafts asked for in one message, their longest chain of `length`: who waits how long.

    Times are in seconds of the caller's clock. `queues` is whether the drafter may have another
    cohort's drafts to make first.
    """

    awaited: frozenset[int]
    started: float
    deadline: float
    length: int
    queues: bool = False
    cost: DraftCost = field(default_factory=DraftCost)


class PendingDrafts:
    """The last request of each sequence, until the sequence is verified."""

    def __init__(self) -> None:
        self._requests: dict[int, DraftRequest] = {}
        self._unanswered: set[int] = set()

    def ask(self, seqs: Iterable[int], request: DraftRequest) -> None:
        """Drafts of `seqs` have been asked for."""
        self._requests.update(dict.fromkeys(seqs, request))
        self._unanswered |= request.awaited

    def settle(self, seq: int) -> None:
        """An answer for `seq` came, or will not come."""
        self._unanswered.discard(seq)

    def drop(self, seq: int) -> None:
        """A sequence was verified, or has ended."""
        self._requests.pop(seq, None)
        self._unanswered.discard(seq)

    def clear(self) -> None:
        """No answer will come, or be waited for."""
        self._requests.clear()
        self._unanswered.clear()

    def remaining(self, now: float, resting: Collection[int] = ()) -> float:
        """Seconds to wait for those who do not rest; 0 if their step leaves now."""
        if not self._unanswered:
            return 0.0
        deadlines = (self._requests[s].deadline for s in self._unanswered if s not in resting)
        return max(0.0, max(deadlines, default=now) - now)

    def requests(self) -> list[DraftRequest]:
        """All that have a sequence which is not verified yet."""
        return _distinct(iter(self._requests.values()))

    def awaited(self, seq: int) -> DraftRequest | None:
        """The request whose answer the sequence waits for, or has waited for."""
        request = self._requests.get(seq)
        return request if request is not None and seq in request.awaited else None

    def answered(self, seqs: Iterable[int]) -> list[DraftRequest]:
        """The requests that an answer for `seqs` belongs to."""
        return _distinct(self._requests[seq] for seq in seqs if seq in self._requests)

    def late(self, resting: Collection[int] = ()) -> list[DraftRequest]:
        """The requests that have an answer missing for those who do not rest."""
        return _distinct(self._requests[seq] for seq in self._unanswered if seq not in resting)


def _distinct(requests: Iterator[DraftRequest]) -> list[DraftRequest]:
    return list({id(request): request for request in requests}.values())
