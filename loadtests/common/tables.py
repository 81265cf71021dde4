"""Tables, and numbers in them, as people read them."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from loadtests.common.stats import Ratio, Spread

NONE = "-"
# Columns of a report that goes to a file or a pipe.
WIDTH = 130


def console() -> Console:
    """The console that reports are printed on."""
    return Console(width=None if sys.stdout.isatty() else WIDTH)


def table(title: str, first: str, *others: str, caption: str | None = None) -> Table:
    """A table whose first column is of words and whose others are of numbers."""
    made = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    made.add_column(first)
    for name in others:
        made.add_column(name, justify="right")
    return made


def number(value: float | None, digits: int) -> str:
    """A number, or that there is none."""
    return NONE if value is None else f"{value:.{digits}f}"


def spread_ms(spread: Spread) -> str:
    """Median and 95th percentile in milliseconds."""
    if spread.p50 is None or spread.p95 is None:
        return NONE
    return f"{spread.p50 * 1e3:.1f} / {spread.p95 * 1e3:.1f}"


def with_interval(ratio: Ratio | None) -> str:
    """A median with its 95 % interval, where it has one."""
    if ratio is None:
        return NONE
    if ratio.low is None or ratio.high is None:
        return f"{ratio.median:.3f}"
    return f"{ratio.median:.3f} ({ratio.low:.3f}-{ratio.high:.3f})"
