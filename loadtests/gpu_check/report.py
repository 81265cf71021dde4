"""The table of a run, as text and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from loadtests.gpu_check.findings import Check, shown
from loadtests.gpu_check.runner import Outcome

_HEAD = ("part", "check", "figure", "bar", "")


def write(outcomes: Sequence[Outcome], remark: str, folder: Path) -> str:
    """Write `table.txt` and `table.md`; returns the first. `remark` stands above both."""
    rows = [row for outcome in outcomes for row in _rows(outcome)]
    text = f"{remark}\n\n{_text(rows)}\n"
    (folder / "table.txt").write_text(text, encoding="utf-8")
    (folder / "table.md").write_text(f"{remark}\n\n{_markdown(rows)}\n", encoding="utf-8")
    return text


def _rows(outcome: Outcome) -> list[tuple[str, ...]]:
    name = outcome.part.name
    if not outcome.checks:
        return [(name, outcome.headline, "", "", "skip" if outcome.skipped else "FAIL")]
    return [(name, *_cells(check)) for check in outcome.checks]


def _cells(check: Check) -> tuple[str, ...]:
    named = f"{check.name}, {check.said}" if check.said else check.name
    figure = "" if check.figure is None else f"{shown(check.figure)} {check.unit}".rstrip()
    sign = ">=" if check.least else "<="
    bar = "" if check.bar is None else f"{sign} {shown(check.bar)}"
    told = check.passed and check.bar is None and check.figure is not None
    return named, figure, bar, "" if told else "pass" if check.passed else "FAIL"


def _text(rows: Iterable[tuple[str, ...]]) -> str:
    table = [_HEAD, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(_HEAD))]

    def line(row: Iterable[str]) -> str:
        cells = zip(row, widths, range(len(widths)), strict=True)
        return "  ".join(f"{c:>{w}}" if i in (2, 3) else f"{c:<{w}}" for c, w, i in cells).rstrip()

    return "\n".join([line(_HEAD), "  ".join("-" * width for width in widths), *map(line, rows)])


def _markdown(rows: Iterable[tuple[str, ...]]) -> str:
    lines = [_HEAD, ("---", "---", "---:", "---:", "---"), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in lines)
