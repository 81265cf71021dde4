"""Numbers for what comes and goes, so that tensors can hold a row for each."""

from heapq import heappop, heappush


class RowNumbers:
    """Hands out the least number that nobody has."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._next = 0

    def take(self) -> int:
        """A number that is the caller's until it is given back."""
        if self._free:
            return heappop(self._free)
        self._next += 1
        return self._next - 1

    def give(self, number: int) -> None:
        """Take a number back."""
        heappush(self._free, number)
