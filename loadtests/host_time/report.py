"""The host's time as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from loadtests.common.tables import number, table
from loadtests.host_time.bench import Rounds


@dataclass(frozen=True, slots=True)
class Level:
    """One number of streams at one temperature: rounds without drafts, with them, and by part.

    Parts are timed in rounds of their own, since to time them takes time.
    """

    plain: Rounds
    drafted: Rounds
    plain_parts: dict[str, float]
    drafted_parts: dict[str, float]


@dataclass(frozen=True, slots=True)
class Summary:
    """Greedy first, then by streams."""

    levels: tuple[Level, ...]


def summarize(measured: Sequence[Rounds]) -> Summary:
    """Put together what belongs together; what is incomplete is left out."""
    groups: dict[tuple[float, int], dict[tuple[bool, bool], Rounds]] = {}
    for each in measured:
        group = groups.setdefault((each.temperature, each.streams), {})
        group[each.draft_length > 0, bool(each.parts)] = each
    return Summary(
        tuple(
            Level(
                group[False, False],
                group[True, False],
                group[False, True].parts,
                group[True, True].parts,
            )
            for _, group in sorted(groups.items())
            if len(group) == 4
        )
    )


def print_summary(console: Console, summary: Summary) -> None:
    """Print the time of a round, and what it goes to."""
    made = table(
        "Host time of a round, ms of a thread, forwards left out", "streams",
        "temperature", "tokens", "verifier plain", "verifier drafts", "to the send", "drafter",
        caption="Medians; tokens: of a stream and round with drafts; to the send: from a forward "
        "to the request for the next drafts.",
    )  # fmt: skip
    for level in summary.levels:
        plain, drafted = level.plain, level.drafted
        times = plain.verifier, drafted.verifier, drafted.to_send, drafted.drafter
        cells = (number(each, 2) for each in times)
        tokens = number(drafted.tokens, 2)
        made.add_row(str(plain.streams), f"{plain.temperature:g}", tokens, *cells)
    console.print(made)
    names = sorted({name for level in summary.levels for name in level.drafted_parts})
    made = table(
        "Of the verifier's, by part", "streams", "temperature", "drafts", *names,
        caption="Timed one by one, which takes time itself.",
    )  # fmt: skip
    for level in summary.levels:
        for length, parts in (
            (0, level.plain_parts),
            (level.drafted.draft_length, level.drafted_parts),
        ):
            cells = (number(parts.get(name, 0.0), 2) for name in names)
            at = str(level.plain.streams), f"{level.plain.temperature:g}", str(length)
            made.add_row(*at, *cells)
    console.print(made)
