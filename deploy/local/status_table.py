"""What the stack tells the person who started it: a live table on a terminal, lines elsewhere."""

import time
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table


@dataclass
class _Row:
    state: str = "waiting"
    doing: str = ""  # within the state
    since: float = field(default_factory=time.monotonic)
    seconds: float | None = None  # what the state before took


class StatusTable:
    """States of the parts, and lines in between."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._rows: dict[str, _Row] = {}
        self._live: Live | None = None
        self._told = -1  # per cent

    def say(self, text: str) -> None:
        """Prints one line as it is."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Prints one line that somebody should see."""
        self._console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def progress(self, what: str, done: int, total: int) -> None:
        """Shows how far a download is: in place on a terminal, else a line for each quarter."""
        percent, told = min(100, 100 * done // total), self._told
        if percent <= told:
            return
        self._told = percent
        line = f"{what}: {percent:3} % of {total / 1e6:.0f} MB"
        if self._console.is_terminal:
            self._console.print(line, end="\n" if percent == 100 else "\r")
        elif percent // 25 > told // 25:
            self.say(line)

    def watch(self, names: list[str]) -> None:
        """Begins to show the states of these parts."""
        self._rows = {name: _Row() for name in names}
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._table, console=self._console)
            self._live.start()

    def settle(self) -> None:
        """Ends the live table; from now on changes are lines."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def state(self, name: str, state: str) -> None:
        """Shows a part's new state."""
        row, now = self._rows[name], time.monotonic()
        took = now - row.since
        self._rows[name] = _Row(state, "", now, took if state == "ready" else None)
        if self._live is None:
            self.say(f"{name:9} {state}{f' after {took:.1f} s' if state == 'ready' else ''}")

    def doing(self, name: str, what: str) -> None:
        """Shows what a part is at within its state."""
        self._rows[name].doing = what
        if self._live is None:
            self.say(f"{name:9} {what}")

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        now = time.monotonic()
        for name, row in self._rows.items():
            colour = "green" if row.state == "ready" else "yellow"
            seconds = now - row.since if row.seconds is None else row.seconds
            doing = escape(row.doing)
            table.add_row(name, f"[{colour}]{row.state}[/]", f"{seconds:.1f} s", doing)
        return table
