"""Who verifies in the next step, and who sits it out while its drafts are made. Pure."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items

from verifier_svc.overlap import Overlap, Turn


class Cohorts:
    """All decoding sequences as one cohort, or as two of the same size that take turns."""

    def __init__(self, step: Callable[[float], float]) -> None:
        """Take the expected seconds of a step of so many rows that runs alone."""
        self._overlap = Overlap(step)
        # The cohort that runs and the one that rests.
        self._running: list[int] = []
        self._resting: list[int] = []

    def observe(self, turn: Turn) -> None:
        """A step has verified."""
        self._overlap.observe(turn)

    def rest(self, decoding: Items[int]) -> frozenset[int]:
        """Which of the decoding sequences sit out the next step; called once for each step."""
        if len(decoding) < 2:
            self._overlap.end()
        if self._overlap.cohorts == 1:
            return frozenset()
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
