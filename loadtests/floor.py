"""A round's time beside the time that memory needs for the target's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from loadtests.result import Result
from loadtests.rounds import Rounds
from loadtests.stats import Ratio, paired_ratio


@dataclass(frozen=True, slots=True)
class Answered:
    """One request. `bandwidth` is that before and after it, in bytes per second."""

    repeat: int
    prompt: str
    speculation: bool
    bandwidth: float
    result: Result


@dataclass(frozen=True, slots=True)
class Split:
    """Mean milliseconds of a request's rounds, and those that the weights' bytes take."""

    whole: float
    target: float
    forward: float  # target and drawing, in whose time the head runs
    others: float  # neither target, nor drafter's computing, nor the bytes of the head
    layers_bytes: float
    head_bytes: float

    @classmethod
    def of(cls, one: Answered, weights: Mapping[str, int]) -> Split | None:
        """Split; None for a request that ended with its first token."""
        rounds = Rounds.of([one.result])
        if rounds is None:
            return None
        parts = rounds.parts_ms
        layers, head = (weights[name] / one.bandwidth * 1e3 for name in ("layers", "head"))
        waits = sum(parts[name] for name in ("drafter_queue_us", "wire_us", "host_us"))
        return cls(
            sum(parts.values()),
            parts["target_us"],
            parts["target_us"] + parts["draw_us"],
            waits + max(0.0, parts["draw_us"] - head),
            layers,
            head,
        )


@dataclass(frozen=True, slots=True)
class Mode:
    """All requests with speculation on, or off. Ratios are medians over prompts."""

    speculation: bool
    tokens: float  # of a forward
    parts_ms: Mapping[str, float]  # means over rounds
    layers_ms: float  # that their bytes take
    head_ms: float
    target: Ratio | None  # by what the bytes of the layers take
    forward: Ratio | None  # by what the bytes of all weights take
    others: Ratio | None  # by the whole round


@dataclass(frozen=True, slots=True)
class Summary:
    """Least, median and largest bandwidth, in bytes per second; weights in bytes."""

    bandwidth: tuple[float, float, float]
    weights: Mapping[str, int]
    modes: tuple[Mode, ...]


def summarize(answered: Sequence[Answered], weights: Mapping[str, int]) -> Summary:
    """Sum up; `weights` are the bytes of `layers` and `head`."""
    given = [one.bandwidth for one in answered] or [0.0]
    modes = ([one for one in answered if one.speculation is on] for on in (False, True))
    found = (_mode(each, weights) for each in modes)
    return Summary(
        (min(given), median(given), max(given)),
        weights,
        tuple(mode for mode in found if mode is not None),
    )


def _mode(answered: Sequence[Answered], weights: Mapping[str, int]) -> Mode | None:
    rounds = Rounds.of(one.result for one in answered)
    if rounds is None:
        return None
    places = {name: place for place, name in enumerate(dict.fromkeys(o.prompt for o in answered))}
    splits = {
        (one.repeat, places[one.prompt]): split
        for one in answered
        if (split := Split.of(one, weights)) is not None
    }

    count = len(splits)
    return Mode(
        answered[0].speculation,
        1 + sum(rounds.proposed_at) / rounds.rounds,
        rounds.parts_ms,
        sum(split.layers_bytes for split in splits.values()) / count,
        sum(split.head_bytes for split in splits.values()) / count,
        paired_ratio(
            {key: split.target for key, split in splits.items()},
            {key: split.layers_bytes for key, split in splits.items()},
        ),
        paired_ratio(
            {key: split.forward for key, split in splits.items()},
            {key: split.layers_bytes + split.head_bytes for key, split in splits.items()},
        ),
        paired_ratio(
            {key: split.others for key, split in splits.items()},
            {key: split.whole for key, split in splits.items()},
        ),
    )
