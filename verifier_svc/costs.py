"""What a step costs, learned from the steps that ran. Pure: seconds are passed in."""

from __future__ import annotations

# How fast the level of a cost, and its dependence on x, follow what is observed.
_LEVEL_GAIN = 0.1
_SLOPE_GAIN = 0.2
# The same after steps that told nothing of it.
_RARE_LEVEL_GAIN = 0.3
# How fast the cost of a prompt row does: it grows along a prompt, with the keys to attend to.
_PROMPT_GAIN = 0.25
# Fewer prompt rows tell more of the noise than of what a row costs.
_TELLING_ROWS = 16


class LinearCost:
    """Seconds as a line in x through their recent mean, kept as level and relative slope.

    The level follows every observation, the slope only those away from the recent mean of x, so
    that it is not forgotten while x stays what it is, and scales with the machine's speed.
    """

    def __init__(self, slope_share: float) -> None:
        """Take the slope assumed before x has varied, as a share of the mean cost."""
        self._share = slope_share
        self._count = 0
        self._x = self._y = 0.0

    @property
    def known(self) -> bool:
        """Whether there is any observation."""
        return self._count > 0

    def observe(self, x: float, seconds: float, *, rare: bool = False) -> None:
        """Take one measurement; one far above the line counts as a mild disturbance.

        A `rare` one, after a time without any, moves the level faster.
        """
        if self.known:
            expected = max(self.predict(x), 0.1 * self._y)
            seconds = min(seconds, 3 * expected)
            away = x - self._x
            error = (seconds - self.predict(x)) / max(self._y, 1e-9)
            gain = max(_SLOPE_GAIN, 1 / self._count)
            self._share = max(0.0, self._share + gain * away * error / (away * away + 1))
        self._count += 1
        gain = max(_RARE_LEVEL_GAIN if rare else _LEVEL_GAIN, 1 / self._count)
        self._x += gain * (x - self._x)
        self._y += gain * (seconds - self._y)

    @property
    def slope(self) -> float:
        """Seconds per unit of x, never negative."""
        return self._share * self._y

    def predict(self, x: float) -> float:
        """Expected seconds at x, never negative; 0 where nothing is known."""
        return max(0.0, self._y + self.slope * (x - self._x))


class StepCost:
    """Seconds of a step: a line in the rows that verify, and so much for each prompt row.

    A prompt row is charged all that its step took beyond the line. Where a part of that does not
    depend on their number, a share of the step's time still buys the right number of rows after
    a few steps: the cost of a row is then that at the number which runs.
    """

    def __init__(self) -> None:
        self._verify = LinearCost(slope_share=0.03)
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
        return self._verify.predict(rows)

    def observe(self, rows: int, seconds: float, prompt_rows: int = 0) -> None:
        """A step of `rows` rows that verify, and `prompt_rows` more, took this long."""
        expected = self._verify.predict(rows)
        # A step with prompt rows may prove that one without them is cheap, never that it is dear.
        if not prompt_rows or (rows and seconds < expected):
            self._verify.observe(rows, seconds, rare=self._mixed)
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
        return int(share * self._verify.predict(rows) / self._prompt_row)
