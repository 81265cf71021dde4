"""What a step costs, learned from the steps that ran. Pure: seconds are passed in."""

from __future__ import annotations

from verifier_svc.cost_model.regression import ForgettingRegression
from verifier_svc.cost_model.residuals import RowResiduals

# How fast the level of a cost follows what is observed, and after steps that told nothing of it.
_LEVEL_GAIN = 0.1
_RARE_LEVEL_GAIN = 0.3
# How much of a level fades in a round in which it is not seen; and how fast what is known counts
# less.
_LEVEL_FADE = 1 / 512
_AGING = 1 / 64
# How fast the level follows a proof that it is too high.
_PROOF_GAIN = 0.7
# So many observations are the first, of which none is taken for a disturbance.
_FIRST = 8
# So many answers of a drafter are the first. What is new is slow, and to believe it would end all
# drafts for long: each of them counts as the fastest.
_FIRST_ANSWERS = 4
# How fast the cost of a prompt row does: it grows along a prompt, with the keys to attend to.
_PROMPT_GAIN = 0.25
# Fewer prompt rows tell more of the noise than of what a row costs.
_TELLING_ROWS = 8


class LinearLatency:
    """Seconds as a line in x through their recent mean, kept as level and relative slope.

    The level follows every observation; the slope scales with it, and so with the machine's speed.
    """

    def __init__(self, slope_share: float) -> None:
        """Take the slope assumed before x has varied, as a share of the cost at x = 0."""
        self._slope = ForgettingRegression(slope_share)
        self._count = 0.0
        self._x = self._y = 0.0

    @property
    def known(self) -> bool:
        """Whether there is any observation."""
        return self._count > 0

    @property
    def settled(self) -> bool:
        """Whether there were enough observations to judge others by."""
        return self._count >= _FIRST

    def observe(self, x: float, seconds: float, *, gain: float = _LEVEL_GAIN) -> None:
        """Take one measurement; one far above a line that is known is a mild disturbance."""
        if self.known:
            expected = max(self._line(x), 0.1 * self._y)
            seconds = min(seconds, (3 if self.settled else 10) * expected)
            error = (seconds - self._line(x)) / max(self._y, 1e-9)
            self._slope.turn(x - self._x, error, surprises=not self.settled)
        else:
            self._slope.start(x)
        self._count += 1
        gain = max(gain, 1 / max(self._count, 1.0))
        self._slope.move(gain * (x - self._x))
        self._x += gain * (x - self._x)
        self._y += gain * (seconds - self._y)

    def doubt(self) -> None:
        """The slope was not seen: believe in less of it, so that in time larger x are tried."""
        self._slope.doubt()

    def age(self) -> None:
        """Nothing was seen: let the level fade, and what is seen next count for more."""
        self._y *= 1 - _LEVEL_FADE
        self._count = min(self._count, 1 / _LEVEL_GAIN) * (1 - _AGING)

    def lower(self, x: float, seconds: float) -> None:
        """Take a measurement that bounds the cost from above; the line keeps its form."""
        if not self.known:
            self.observe(x, seconds)
        elif seconds < (expected := self.predict(x)):
            self._y *= 1 - _PROOF_GAIN * (1 - seconds / expected)

    @property
    def slope(self) -> float:
        """Seconds per unit of x, never negative."""
        return self._slope.believed * self._y

    def predict(self, x: float) -> float:
        """Expected seconds at x, never negative; 0 where nothing is known."""
        return max(0.0, self._y + self.slope * (x - self._x))

    def _line(self, x: float) -> float:
        """What was learned, doubts apart."""
        return max(0.0, self._y * (1 + self._slope.share * (x - self._x)))


class StepLatency:
    """Seconds of a step: a line in the rows that verify, and so much for each prompt row.

    A prompt row is charged all that its step took beyond the line. Where a part of that does not
    depend on their number, a share of the step's time still buys the right number of rows after
    a few steps: the cost of a row is then that at the number which runs.
    """

    def __init__(self) -> None:
        self._verify = LinearLatency(slope_share=0.03)
        self._residuals = RowResiduals()
        #: Whether each number of rows has a cost of its own. Not where one cohort is compared with
        #: two: what is learned of the rows that run would count for or against those of the other.
        self.by_rows = True
        self._prompt_row = 0.0
        self._mixed = False

    @property
    def known(self) -> bool:
        """Whether any step was observed that verified."""
        return self._verify.known

    @property
    def slope(self) -> float:
        """Seconds per row that verifies."""
        return self._verify.slope

    def predict(self, rows: float) -> float:
        """Expected seconds of a step of `rows` rows that verify; 0 where nothing is known."""
        line = self._verify.predict(rows)
        return line * self._residuals.at(rows) if self.by_rows else line

    def age(self) -> None:
        """No drafts are verified: what their rows cost is not seen."""
        self._verify.doubt()

    def observe(self, rows: int, seconds: float, prompt_rows: int = 0) -> None:
        """A step of `rows` rows that verify, and `prompt_rows` more, took this long."""
        expected = self.predict(rows)
        # A step with prompt rows may prove that one without them is cheap, never that it is dear.
        if not prompt_rows or (rows and seconds < expected):
            gain = _RARE_LEVEL_GAIN if self._mixed else _LEVEL_GAIN
            self._verify.observe(rows, seconds, gain=gain)
            if self._verify.settled:
                self._residuals.observe(rows, seconds / max(self._verify.predict(rows), 1e-9))
        self._mixed = bool(rows and prompt_rows)
        if prompt_rows < _TELLING_ROWS:
            return
        each = max(seconds - expected, 0.1 * seconds) / prompt_rows
        known = self._prompt_row or each
        # A stall is no news of the cost, and a lucky step little.
        each = min(max(each, known / 3), 3 * known)
        self._prompt_row = known + _PROMPT_GAIN * (each - known)

    def prompt_rows(self, rows: int, share: float) -> int:
        """Prompt rows that make a step of `rows` rows longer by `share`; 0 if not known."""
        if not self._prompt_row:
            return 0
        return int(share * self.predict(rows) / self._prompt_row)


class CatchUpCost:
    """Seconds that a drafter takes for a row which is sent ahead of drafts."""

    def __init__(self) -> None:
        self._first: list[float] = []
        self._level = 0.0
        self._believed = 1.0

    @property
    def each(self) -> float:
        """Seconds of one row; 0 where too little is known."""
        return self._level * self._believed

    def doubt(self) -> None:
        """Rows were too dear to be sent: believe in less, so that in time some are seen again."""
        self._believed *= 1 - _AGING

    def observe(self, rows: int, seconds: float) -> None:
        """So many rows took this long; of the first few, which are slow, the fastest count."""
        each = seconds / max(rows, 1)
        self._believed = 1.0
        if len(self._first) < _FIRST_ANSWERS:
            self._first.append(each)
            if len(self._first) == _FIRST_ANSWERS:
                self._level = min(self._first)
        else:
            each = min(each, 3 * self._level) if self._level else each
            self._level += _LEVEL_GAIN * (each - self._level)


class DraftLatency:
    """Time until drafts are there: a line in the length of the longest chain, or no chain.

    On a shared device in units of a plain step, not in seconds: what slows one down slows the
    other, and where no drafts are asked for only the step is seen to become fast again.
    """

    def __init__(self) -> None:
        self._chain = LinearLatency(slope_share=0.4)
        self._no_chain = LinearLatency(slope_share=0.0)
        self._first: list[float] = []

    def predict(self, length: int) -> float:
        """Expected time for chains of `length`; 0 where nothing is known."""
        if (length and self._chain.known) or not self._no_chain.known:
            return self._chain.predict(length)
        return self._no_chain.predict(0)

    def age(self) -> None:
        """A round went by without drafts."""
        self._chain.age()
        self._no_chain.age()

    def observe(self, length: int, time: float, *, awaited: bool) -> None:
        """An answer whose longest chain has `length` took this long.

        One that nobody awaited was made while the target kept the machine busy: it may prove
        that drafts are cheap, never that they are dear.
        """
        line = self._chain if length else self._no_chain
        if len(self._first) < _FIRST_ANSWERS:
            self._first.append(time)
            if len(self._first) == _FIRST_ANSWERS:
                for _ in self._first:
                    line.observe(length, min(self._first))
        elif awaited:
            line.observe(length, time)
        else:
            line.lower(length, time)
