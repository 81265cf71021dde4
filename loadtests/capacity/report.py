"""What the waves of a run say of co-located and of remote drafting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from rich.console import Console

from loadtests.capacity.engine_run import Window
from loadtests.common.stats import Ratio, paired_ratio
from loadtests.common.tables import number, table, with_interval


@dataclass(frozen=True, slots=True)
class Arm:
    """Medians over the waves of an arm, see `Window`; times are in seconds."""

    name: str
    tokens_per_second: float
    round: float
    verify: float
    draft: float
    drafted: float
    accepted: float


@dataclass(frozen=True, slots=True)
class Level:
    """One number of streams.

    `expected` is 1 + k * t_draft / t_verify by the co-located arm's times: what a verifier may win
    that is saturated. `over_kernels` is its round's time by the sum of the round's kernels.
    """

    streams: int
    arms: tuple[Arm, ...]
    local_by_plain: Ratio | None  # of tokens per second, as all ratios
    remote_by_plain: Ratio | None
    remote_by_local: Ratio | None
    expected: float
    over_kernels: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """All numbers of streams, in rising order."""

    levels: tuple[Level, ...]


def summarize(waves: Sequence[Window], names: tuple[str, str, str]) -> Summary:
    """Sum up waves of the arms that draft not at all, on the target's device, and elsewhere."""
    levels = sorted({wave.streams for wave in waves})
    return Summary(tuple(_level([w for w in waves if w.streams == n], n, names) for n in levels))


def _level(waves: Sequence[Window], streams: int, names: tuple[str, str, str]) -> Level:
    plain, local, remote = (
        [w for w in waves if w.arm == name and w.kernels is None] for name in names
    )
    arms = tuple(_arm(own) for own in (plain, local, remote) if own)
    kernels = [w.kernels for w in waves if w.kernels is not None]
    here = _arm(local) if local else None
    return Level(
        streams,
        arms,
        _ratio(local, plain),
        _ratio(remote, plain),
        _ratio(remote, local),
        1 + here.draft / here.verify if here else 1.0,
        here.round / kernels[0] if here and kernels else None,
    )


def _arm(waves: Sequence[Window]) -> Arm:
    return Arm(
        waves[0].arm,
        median(w.tokens_per_second for w in waves),
        median(w.round for w in waves),
        median(w.verify for w in waves),
        median(w.draft for w in waves),
        median(w.drafted for w in waves),
        median(w.accepted for w in waves),
    )


def _ratio(waves: Sequence[Window], others: Sequence[Window]) -> Ratio | None:
    speeds, against = ({(w.repeat, 0): w.tokens_per_second for w in of} for of in (waves, others))
    return paired_ratio(speeds, against)


def print_summary(console: Console, summary: Summary, device: str) -> None:
    """Print what each arm did, then the ratios."""
    made = table(
        f"Drafts of a coin on {device}",
        *("streams", "arm", "tok/s", "round", "verify", "draft", "drafted", "accepted"),
        caption="Medians; round: of a stream, in ms, with what it waits for; drafted: of rounds.",
    )
    for level in summary.levels:
        for arm in level.arms:
            times = (number(each * 1e3, 2) for each in (arm.round, arm.verify, arm.draft))
            speed = number(arm.tokens_per_second, 1)
            shares = (f"{share:.1%}" for share in (arm.drafted, arm.accepted))
            made.add_row(str(level.streams), arm.name, speed, *times, *shares)
    console.print(made)
    made = table(
        "Tokens per second", "streams", "co-located by plain", "remote by plain",
        "remote by co-located", "1 + k t_draft / t_verify", "round by its kernels",
        caption="Remote is emulated: real messages over loopback, answers after measured times.",
    )  # fmt: skip
    for level in summary.levels:
        ratios = level.local_by_plain, level.remote_by_plain, level.remote_by_local
        cells = (with_interval(ratio) for ratio in ratios)
        made.add_row(
            str(level.streams), *cells, number(level.expected, 3), number(level.over_kernels, 3)
        )
    console.print(made)
