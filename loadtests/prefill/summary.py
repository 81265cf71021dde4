"""Times to the first token of cold prompts, and their ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from loadtests.common.stats import Key, Ratio, Spread, paired_ratio
from loadtests.peers.arms import ARMS, PEERS


@dataclass(frozen=True, slots=True)
class Answered:
    """One prompt of `size` tokens, about, in one arm; seconds are those to its first token."""

    size: int
    repeat: int
    arm: str
    prompt_tokens: int
    seconds: float

    @property
    def key(self) -> Key:
        """Each prompt is a unit of its own."""
        return 0, self.repeat

    @property
    def speed(self) -> float:
        """Prompt tokens per second."""
        return self.prompt_tokens / self.seconds


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """One arm; times are in seconds."""

    name: str
    prompt_tokens: tuple[int, ...]
    first_token: Spread
    tokens_per_second: float  # the median over prompts


@dataclass(frozen=True, slots=True)
class Size:
    """All prompts of one size. `best` is the peer with the highest speed, None without peers."""

    tokens: int
    arms: tuple[ArmSummary, ...]
    speeds: Mapping[str, Mapping[str, Ratio]]  # by arm and the arm it is set against
    best: str | None
    against_best: Mapping[str, Ratio]  # speed of our own arms by that of `best`


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything that the prefill benchmark reports."""

    sizes: tuple[Size, ...]


def summarize(answered: Sequence[Answered]) -> Summary:
    """Sum up; ratios are paired by prompt."""
    sizes = dict.fromkeys(one.size for one in answered)
    return Summary(tuple(_size(n, [one for one in answered if one.size == n]) for n in sizes))


def _size(tokens: int, answered: Sequence[Answered]) -> Size:
    by_arm: dict[str, list[Answered]] = {}
    for one in answered:
        by_arm.setdefault(one.arm, []).append(one)
    names = [name for name in ARMS if name in by_arm]
    arms = {name: _arm(name, by_arm[name]) for name in names}
    speeds: dict[str, dict[str, Ratio]] = {}
    for place, name in enumerate(names):
        for base in names[:place]:
            if ratio := _ratio(by_arm[name], by_arm[base]):
                speeds.setdefault(name, {})[base] = ratio
    peers = [name for name in names if name in PEERS]
    best = max(peers, key=lambda name: arms[name].tokens_per_second, default=None)
    against = {
        name: ratio
        for name in names
        if best is not None and name not in PEERS and (ratio := speeds.get(name, {}).get(best))
    }
    return Size(tokens, tuple(arms.values()), speeds, best, against)


def _arm(name: str, answered: Sequence[Answered]) -> ArmSummary:
    return ArmSummary(
        name,
        tuple(one.prompt_tokens for one in answered),
        Spread.of([one.seconds for one in answered]),
        median(one.speed for one in answered),
    )


def _ratio(ours: Sequence[Answered], base: Sequence[Answered]) -> Ratio | None:
    return paired_ratio({o.key: o.speed for o in ours}, {o.key: o.speed for o in base})
