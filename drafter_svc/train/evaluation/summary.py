"""What replayed speculation comes to, as JSON and as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TextIO

from drafter_svc.train.evaluation.replay import Rounds

_HEADINGS = ("prompts", "drafts", "length", "without loops", "by lookup", "length", "accepted at")


@dataclass(frozen=True, slots=True)
class Arm:
    """A way to draft: by the chain or not, and from which repeated suffix on by lookup."""

    chain: bool
    lookup: int | None

    def __str__(self) -> str:
        lookup = [] if self.lookup is None else [f"lookup {self.lookup}"]
        return " + ".join(["chain"] * self.chain + lookup)


def summary(arm: Arm, rounds: Rounds) -> dict[str, object]:
    """Acceptance length (bonus included) with and without loops, by source and per position."""
    own, found, rest = rounds.without_loops(), rounds.by_lookup(True), rounds.by_lookup(False)
    return {
        "drafts": str(arm),
        "lookup": arm.lookup,
        "rounds": len(rounds.accepted),
        "draft_length": rounds.length,
        "acceptance_length": round(rounds.acceptance_length, 3),
        "per_position": [round(share, 3) for share in rounds.per_position],
        "rounds_without_loops": len(own.accepted),
        "acceptance_length_without_loops": round(own.acceptance_length, 3),
        "lookup_rounds": len(found.accepted),
        "lookup_acceptance_length": round(found.acceptance_length, 3),
        "other_acceptance_length": round(rest.acceptance_length, 3),
    }


def print_table(results: Mapping[str, Mapping[Arm, Rounds]], out: TextIO) -> None:
    """Print every file and the mean of all, and name the best threshold beside the chain."""
    rows: list[Sequence[str]] = [_HEADINGS]
    for name, arms in results.items():
        rows += [_row(name, arm, rounds) for arm, rounds in arms.items()]
    means = mean_lengths(results)
    if len(results) > 1:
        for arm, (length, own) in means.items():
            rows.append(("mean", str(arm), f"{length:.3f}", f"{own:.3f}", "", "", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADINGS))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip(), file=out)
    if both := [arm for arm in means if arm.chain and arm.lookup is not None]:
        best = max(both, key=lambda arm: means[arm][0])
        print(f"best threshold: {best.lookup}", file=out)


def mean_lengths(results: Mapping[str, Mapping[Arm, Rounds]]) -> dict[Arm, tuple[float, float]]:
    """Mean over the files of the acceptance length, with and without loops."""
    arms = list(next(iter(results.values()), {}))
    return {
        arm: (
            fmean(file[arm].acceptance_length for file in results.values()),
            fmean(file[arm].without_loops().acceptance_length for file in results.values()),
        )
        for arm in arms
    }


def _row(name: str, arm: Arm, rounds: Rounds) -> Sequence[str]:
    own, found = rounds.without_loops(), rounds.by_lookup(True)
    share = len(found.accepted) / max(1, len(rounds.accepted))
    return (
        name,
        str(arm),
        f"{rounds.acceptance_length:.3f}",
        f"{own.acceptance_length:.3f} of {len(own.accepted) / max(1, len(rounds.accepted)):.0%}",
        f"{share:.0%}" if arm.lookup else "",
        f"{found.acceptance_length:.3f}" if found.accepted else "",
        " ".join(f"{position:.3f}".lstrip("0") for position in rounds.per_position),
    )
