"""Percentiles, and ratios of paired measurements with their uncertainty."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
COVERAGE = 0.95

# (repeat, unit): a unit is what every repeat measures anew, such as one prompt.
Key = tuple[int, int]


def percentile(values: Iterable[float], percent: float) -> float | None:
    """The percentile of all values, interpolated; None where there are none."""
    array = np.fromiter(values, float)
    return float(np.percentile(array, percent)) if array.size else None


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median over units of a paired ratio. `low` and `high` bound 95 % of the resamples."""

    median: float
    low: float | None
    high: float | None
    repeats: tuple[float, ...]
    pairs: int


def paired_ratio(
    numerators: Mapping[Key, float], denominators: Mapping[Key, float], seed: int = 0
) -> Ratio | None:
    """Divide measurements that share repeat and unit; None where nothing does.

    A unit's ratio is the median over its repeats, and the whole is the median over units. The
    interval is a percentile bootstrap in two levels: units are drawn with replacement, and the
    repeats of each drawn unit again. One single pair has no interval. `repeats` are the medians
    over units of each repeat alone.
    """
    shared = sorted(numerators.keys() & denominators.keys())
    ratios = {key: numerators[key] / denominators[key] for key in shared}
    if not ratios:
        return None
    units = _grouped(ratios, 1)
    low = high = None
    if len(ratios) > 1:
        resamples = _resample(units, np.random.default_rng(seed))
        tail = 50 * (1 - COVERAGE)
        low, high = (float(np.percentile(resamples, p)) for p in (tail, 100 - tail))
    return Ratio(
        median(median(values) for values in units),
        low,
        high,
        tuple(median(values) for values in _grouped(ratios, 0)),
        len(ratios),
    )


def _grouped(ratios: Mapping[Key, float], part: int) -> list[list[float]]:
    """Ratios by one part of their keys, in its order."""
    groups: dict[int, list[float]] = {}
    for key in sorted(ratios, key=lambda key: key[part]):
        groups.setdefault(key[part], []).append(ratios[key])
    return list(groups.values())


def _resample(units: list[list[float]], generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """Medians over units of RESAMPLES resamples, [RESAMPLES]."""
    counts = np.array([len(values) for values in units])
    most = counts.max()
    table = np.array([values + [0.0] * (most - len(values)) for values in units])
    drawn = generator.integers(len(units), size=(RESAMPLES, len(units)))
    inner = generator.random((*drawn.shape, most)) * counts[drawn][..., None]
    values = table[drawn[..., None], inner.astype(int)]
    medians: npt.NDArray[np.float64] = np.median(np.median(values, axis=2), axis=1)
    return medians


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and 95th percentile; None where nothing was measured."""

    p50: float | None
    p95: float | None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread:
        measured = [value for value in values if value is not None]
        return cls(percentile(measured, 50), percentile(measured, 95))
