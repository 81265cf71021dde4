"""Whether drafts are made beside verification, by two cohorts that take turns. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# What two cohorts must promise at best to be tried, and what they must prove to stay.
_PROMISE = 1.15
_PROOF = 1.04
# A trial ends at once where half steps are so much too slow.
_HOPELESS = 1.1
# How fast what is expected follows what is observed, and the most that one turn may tell.
_GAIN = 0.1
_MOST = 3.0
# Turns after a step of all until each turn has the other's drafts made beside it.
_SETTLING = 2
# Turns that are measured before a verdict, and turns by which there must be one.
_TRIAL = 6
_TRIAL_TURNS = 40
# Rounds before the next trial: at first, and at most after trials that failed.
_INTERVALS = (32, 1024)
# Turns of two cohorts before a step of all: what it costs must stay known.
_TOGETHER = 64


@dataclass(frozen=True, slots=True)
class Turn:
    """A step that verified, of all decoding sequences or of a cohort.

    `rows` is what a step of all would verify, `draft` the seconds that its drafts are expected to
    take. `seconds` passed since the step before it had ended; None where that says nothing.
    """

    rows: float
    draft: float
    seconds: float | None


class Overlap:
    """Tries two cohorts where they may be faster, and stays with them while they prove to be.

    All at once take step(rows) + draft. Two cohorts take at least two half steps, or a half step
    and the draft where that is longer. What a half step takes, and how much the two services
    slow each other down, as they do on shared cores, is not predicted but measured: the time of
    the turns is compared with that of all at once, whose costs are learned only from what ran
    alone. Trials that fail become rare.
    """

    def __init__(self, step: Callable[[float], float]) -> None:
        """Take the expected seconds of a step of so many rows that runs alone."""
        self._step = step
        self._split = False
        self._promise = 1.0
        # Seconds of two turns over those of all at once, and how many turns were measured.
        self._time = 1.0
        self._measured = 0
        # Turns since all verified together, and since the split.
        self._turns = self._split_turns = 0
        # Rounds since the last split, and how many there must be before the next.
        self._rounds = 0
        self._interval = _INTERVALS[0]
        self.cohorts = 1

    def end(self) -> None:
        """Let all verify together; until the next trial, or since nobody is left to split."""
        self._split, self.cohorts, self._rounds = False, 1, 0

    def observe(self, turn: Turn) -> None:
        """Take a step, and decide on the next one."""
        step = self._step(turn.rows)
        alone = step + turn.draft
        if alone <= 0:
            return
        if not self._split:
            self._rounds += 1
            best = max(step, step / 2 + turn.draft)
            self._promise += _GAIN * (alone / best - self._promise)
            if self._promise > _PROMISE and self._rounds >= self._interval:
                self._start()
        elif self.cohorts == 1:
            self._turns, self.cohorts = 0, 2
        else:
            self._turns += 1
            self._split_turns += 1
            if turn.seconds is not None:
                self._measure(turn.seconds, turn.draft, alone)
            self._judge()

    def _start(self) -> None:
        self._split, self.cohorts = True, 2
        self._turns = self._split_turns = self._measured = 0

    def _measure(self, seconds: float, draft: float, alone: float) -> None:
        if self._turns > _SETTLING:
            self._measured += 1
            time = min(2 * seconds / alone, _MOST)
            self._time += max(_GAIN, 1 / self._measured) * (time - self._time)
        # Where its drafts were there already, a turn is a half step and nothing else.
        elif self._split_turns == _SETTLING and (
            max(2 * seconds, seconds + draft) > _HOPELESS * alone
        ):
            self._fail()

    def _judge(self) -> None:
        if self._measured < _TRIAL:
            if self._split_turns >= _TRIAL_TURNS:
                self.end()
        elif _PROOF * self._time < 1:
            self._interval = _INTERVALS[0]
        elif self._measured == _TRIAL:
            self._fail()
        else:
            # Two cohorts were faster, and may be again soon.
            self.end()
        if self._split and self._turns >= _TOGETHER:
            self.cohorts = 1

    def _fail(self) -> None:
        self._interval = min(2 * self._interval, _INTERVALS[1])
        self.end()
