"""A round's time beside what its weights take: of the memory, and of the head's product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from loadtests.common.draft_stats import RoundStats
from loadtests.common.result import Result
from loadtests.common.stats import Ratio, paired_ratio


@dataclass(frozen=True, slots=True)
class Wave:
    """Requests that began together, as many as were to run at once.

    `bandwidth` is that before and after them, in bytes per second; `head` are the seconds that the
    head's product took after them, with as many rows as their forwards had on the mean.
    """

    concurrency: int
    temperature: float
    speculation: bool
    repeat: int
    place: int
    bandwidth: float
    head: float
    results: tuple[Result, ...]

    @property
    def kind(self) -> tuple[int, float, bool]:
        """What it shares with other waves of its mode."""
        return self.concurrency, self.temperature, self.speculation


@dataclass(frozen=True, slots=True)
class Split:
    """Mean milliseconds of a wave's rounds, and those that the weights take."""

    whole: float
    target: float
    forward: float  # target and drawing, in whose time the head runs
    drawing: float  # beyond the head's product; less than 0 where that was measured too long
    others: float  # neither target, nor drafter's computing, nor the head's product
    head: float  # the product
    layers_bytes: float
    head_bytes: float

    @classmethod
    def of(cls, wave: Wave, weights: Mapping[str, int]) -> Split | None:
        """Split; None for requests that ended with their first token."""
        rounds = RoundStats.of(wave.results)
        if rounds is None:
            return None
        parts = rounds.parts_ms
        layers, head = (weights[name] / wave.bandwidth * 1e3 for name in ("layers", "head"))
        waits = sum(parts[name] for name in ("drafter_queue_us", "wire_us", "host_us"))
        drawing = parts["draw_us"] - wave.head * 1e3
        return cls(
            sum(parts.values()),
            parts["target_us"],
            parts["target_us"] + parts["draw_us"],
            drawing,
            waits + drawing,
            wave.head * 1e3,
            layers,
            head,
        )


@dataclass(frozen=True, slots=True)
class Mode:
    """All waves of one concurrency and temperature, with speculation or without.

    Ratios are medians over waves.
    """

    concurrency: int
    temperature: float
    speculation: bool
    tokens: float  # of a sequence in a forward
    parts_ms: Mapping[str, float]  # means over rounds
    head_ms: float  # of the head's product
    layers_bytes_ms: float  # that memory takes for them
    head_bytes_ms: float
    target: Ratio | None  # by what the bytes of the layers take
    forward: Ratio | None  # by what the bytes of all weights take
    drawing: Ratio | None  # beyond the head's product, by the whole round
    others: Ratio | None  # by the whole round


@dataclass(frozen=True, slots=True)
class Summary:
    """Least, median and largest bandwidth, in bytes per second; weights in bytes."""

    bandwidth: tuple[float, float, float]
    weights: Mapping[str, int]
    modes: tuple[Mode, ...]


def rows_of(results: Sequence[Result]) -> int:
    """Rows of the forwards in which these requests ran together, on the mean."""
    rounds = RoundStats.of(results)
    return round(len(results) * tokens_of(rounds)) if rounds is not None else len(results)


def tokens_of(rounds: RoundStats) -> float:
    """Tokens of a sequence in a forward, on the mean."""
    return 1 + sum(rounds.proposed_at) / rounds.rounds


def summarize(waves: Sequence[Wave], weights: Mapping[str, int]) -> Summary:
    """Sum up; `weights` are the bytes of `layers` and `head`."""
    given = [wave.bandwidth for wave in waves] or [0.0]
    kinds = sorted({wave.kind for wave in waves})
    found = (_mode([wave for wave in waves if wave.kind == kind], weights) for kind in kinds)
    return Summary(
        (min(given), median(given), max(given)),
        weights,
        tuple(mode for mode in found if mode is not None),
    )


def _mode(waves: Sequence[Wave], weights: Mapping[str, int]) -> Mode | None:
    rounds = RoundStats.of(result for wave in waves for result in wave.results)
    splits = {
        (wave.repeat, wave.place): split
        for wave in waves
        if (split := Split.of(wave, weights)) is not None
    }
    if rounds is None:
        return None

    def mean(name: str) -> float:
        return float(sum(getattr(split, name) for split in splits.values()) / len(splits))

    def ratio(name: str, *bases: str) -> Ratio | None:
        return paired_ratio(
            {key: getattr(split, name) for key, split in splits.items()},
            {key: sum(getattr(split, base) for base in bases) for key, split in splits.items()},
        )

    return Mode(
        *waves[0].kind,
        tokens_of(rounds),
        rounds.parts_ms,
        mean("head"),
        mean("layers_bytes"),
        mean("head_bytes"),
        ratio("target", "layers_bytes"),
        ratio("forward", "layers_bytes", "head_bytes"),
        ratio("drawing", "whole"),
        ratio("others", "whole"),
    )
