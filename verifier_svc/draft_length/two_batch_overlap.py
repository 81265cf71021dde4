"""Who verifies in the next step, and who rests while its drafts are made. Pure."""

from __future__ import annotations

from collections.abc import Sequence as Items

# What two cohorts must promise over one to be formed, and to stay: what is promised is not exact,
# and each change costs a little.
FORM, STAY = 1.03, 0.97
# Turns of two cohorts before a step of all: what it costs must stay known.
_TURNS = 100


class TwoBatchOverlap:
    """All decoding sequences as one cohort, or as two of the same size that take turns."""

    def __init__(self) -> None:
        self._split = False
        self._turns = 0
        # The cohort that runs next and the one that rests meanwhile.
        self._running: list[int] = []
        self._resting: list[int] = []

    def rest(self, decoding: Items[int], gain: float) -> frozenset[int]:
        """Which of the decoding sequences sit out the next step; called once for each step.

        `gain` is what two cohorts promise: their speed over that of one.
        """
        self._split = len(decoding) > 1 and gain > (STAY if self._split else FORM)
        if not self._split:
            self._running, self._resting = [], []
        self._turns = (self._turns + 1) % _TURNS if self._split else 0
        return self._swap(decoding) if self._turns else frozenset()

    def _swap(self, decoding: Items[int]) -> frozenset[int]:
        """The cohort that has run rests next."""
        here = set(decoding)
        runs = [seq for seq in self._resting if seq in here]
        rests = [seq for seq in self._running if seq in here]
        for seq in sorted(here.difference(runs, rests)):
            # Its drafts were asked for with those of the cohort that rests.
            (runs if len(runs) < len(rests) else rests).append(seq)
        # Who changes sides sits out one more step; the other way it would have to be waited for.
        while len(runs) > len(rests) + 1:
            rests.append(runs.pop())
        if not runs:
            half = len(rests) // 2
            runs, rests = rests[:half], rests[half:]
        self._running, self._resting = runs, rests
        return frozenset(rests)
