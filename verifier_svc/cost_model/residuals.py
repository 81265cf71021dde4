"""How a cost departs from a line, by the number of rows, learned from noisy steps. Pure."""

from __future__ import annotations

# Rows of which each number is known by itself; steps of more are large, and near the line.
_MOST = 64
# How fast a ratio follows what is observed, and of what it is taken for a disturbance.
_GAIN = 0.1
_CLIP = 1.3
# Observations that what is seen at a number of rows must outweigh.
_PRIOR = 12.0


class RowResiduals:
    """Ratios of what steps took to what a line says, by their rows, against the mean ratio.

    Kernels work on blocks of rows, so that costs rise by steps: the last row of a block is all but
    free. Numbers that were not seen lie on the line, which may be wrong as a whole: only how one
    number of rows differs from the others is learned.
    """

    def __init__(self) -> None:
        self._ratios = [1.0] * (_MOST + 2)
        self._counts = [0.0] * (_MOST + 2)
        self._mean = 1.0

    def observe(self, rows: int, ratio: float) -> None:
        """A step of `rows` rows took `ratio` of what the line says."""
        if not 0 < rows <= _MOST:
            return
        known = self._ratios[rows]
        likely = self._mean * known
        ratio = min(max(ratio, likely / _CLIP), likely * _CLIP)
        self._counts[rows] += 1
        gain = max(_GAIN, 1 / (self._counts[rows] + _PRIOR))
        self._ratios[rows] += gain * (ratio / self._mean - known)
        self._mean += _GAIN * (ratio - self._mean)

    def at(self, rows: float) -> float:
        """The ratio at a mean number of rows."""
        if rows > _MOST:
            return 1.0
        low = int(rows)
        part = rows - low
        return (1 - part) * self._ratios[low] + part * self._ratios[low + 1]
