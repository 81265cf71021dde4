"""Prompt lookup: what followed an earlier occurrence of a sequence's last tokens. Pure."""

from collections.abc import Iterable

# Longer matches count as equally good, so that the most recent of them is taken.
_LONGEST = 32
# Earlier occurrences of the shortest match that are looked at, the most recent first.
_CANDIDATES = 64


class SuffixIndex:
    """The committed tokens of one sequence, and where each n-gram of them occurred before.

    A token costs one entry of a dictionary, and a search a walk over the earlier occurrences of
    the last n-gram. ``shortest`` is n: no shorter suffix counts as repeated.
    """

    def __init__(self, shortest: int) -> None:
        self._shortest = shortest
        self._tokens: list[int] = []
        # One past the last occurrence of each n-gram, and for each place the one before it.
        self._last: dict[tuple[int, ...], int] = {}
        self._before: list[int] = []

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Append committed tokens."""
        known, last, before, n = self._tokens, self._last, self._before, self._shortest
        for token in tokens:
            known.append(token)
            if len(known) < n:
                before.append(0)
                continue
            gram = tuple(known[-n:])
            before.append(last.get(gram, 0))
            last[gram] = len(known)

    def match(self) -> tuple[int, int]:
        """The longest suffix that occurred before, overlapping itself or not.

        Returns its length, and one past the most recent earlier occurrence of it; (0, 0) if
        nothing of the shortest length is repeated.
        """
        tokens, end = self._tokens, len(self._tokens)
        length = place = 0
        candidate = self._before[-1] if tokens else 0
        for _ in range(_CANDIDATES):
            if not candidate or length >= _LONGEST:
                break
            # A longer match agrees one token further back than the best so far.
            if not length or (
                candidate > length and tokens[candidate - 1 - length] == tokens[end - 1 - length]
            ):
                common = self._common(candidate)
                if common > length:
                    length, place = common, candidate
            candidate = self._before[candidate - 1]
        return length, place

    def propose(self, count: int) -> tuple[int, ...]:
        """The ``count`` tokens that follow the match; none without a match.

        Where they run into the end of the sequence they go on with themselves: a loop goes on.
        """
        length, place = self.match()
        if not length:
            return ()
        following = self._tokens[place : place + count]
        period = len(self._tokens) - place
        while len(following) < count:
            following.append(following[-period])
        return tuple(following)

    def _common(self, place: int) -> int:
        """Length of the longest common suffix of the tokens before ``place`` and of all."""
        tokens, end = self._tokens, len(self._tokens)
        limit = min(_LONGEST, place)
        length = self._shortest
        while length < limit and tokens[place - 1 - length] == tokens[end - 1 - length]:
            length += 1
        return length
