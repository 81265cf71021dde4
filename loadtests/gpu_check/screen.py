"""What is seen of a run while it runs: a line a part, and on a terminal a bar of its time."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import Any

# Seconds between two lines where there is no bar.
_PAUSE = 15.0


class Screen:
    """Lines go to stdout; how far a part is, to stderr."""

    def __init__(self) -> None:
        self._name, self._limit = "", 0.0
        self._began = self._told = 0.0
        self._said = ""
        self._bar: Any = None

    def begin(self, name: str, about: str, limit: float) -> None:
        """A part begins that may take so many seconds."""
        self._name, self._limit, self._said = name, limit, about
        self._began = self._told = time.monotonic()
        self._bar = _bar(name, limit)

    def beat(self, said: str | None) -> None:
        """A second has gone by, or a part has something to say."""
        self._said = said or self._said
        now = time.monotonic()
        took = now - self._began
        if self._bar is not None:
            self._bar.n = round(min(took, self._limit))
            self._bar.set_postfix_str(self._said)
        elif now - self._told >= _PAUSE:
            self._told = now
            line = f"      {self._name}: {took:.0f} of {self._limit:.0f} s, {self._said}"
            print(line, file=sys.stderr, flush=True)

    def end(self, passed: bool, skipped: bool, headline: str) -> None:
        """A part has ended, or was skipped."""
        if self._bar is not None:
            self._bar.close()
        word = "skip" if skipped else "pass" if passed else "FAIL"
        took = time.monotonic() - self._began
        print(f"{word}  {self._name:<10} {took:5.1f} s  {headline}", flush=True)


def _bar(name: str, limit: float) -> Any:
    """A bar of seconds; None where nobody would see it, or nothing draws it."""
    if not sys.stderr.isatty():
        return None
    with suppress(ImportError):
        from tqdm import tqdm

        form = "{desc}: {n_fmt} of {total_fmt} s |{bar:20}| {postfix}"
        return tqdm(total=round(limit), desc=name, leave=False, bar_format=form)
    return None
