"""Runs parts one after the other, each within its limit, whatever becomes of them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context

from loadtests.gpu_check.findings import Check, read
from loadtests.gpu_check.options import Options
from loadtests.gpu_check.parts import PARTS, Part
from loadtests.gpu_check.screen import Screen
from loadtests.gpu_check.worker import DONE, Prepare, prepare, serve

# Seconds: a part with less is not begun; a worker ends itself at the limit, for the log's sake.
_LEAST, _GRACE = 5.0, 5.0
_PREPARATION = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """A part that ran, with all its checks, or was `skipped` for that reason."""

    part: Part
    seconds: float
    checks: tuple[Check, ...]
    skipped: str = ""

    @property
    def passed(self) -> bool:
        """Whether it ran, checked something, and nothing failed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def headline(self) -> str:
        """The check that says most: the first that failed, or the one nearest to its bar."""
        if self.skipped or not self.checks:
            return self.skipped or "nothing was checked"
        failed = [check for check in self.checks if not check.passed]
        return str(failed[0] if failed else max(self.checks, key=lambda check: check.strain))


class Worker:
    """A process that runs parts; one that failed is not used again."""

    def __init__(self, options: Options, prepare: Prepare) -> None:
        # Not forked: CUDA does not follow.
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, options, prepare), daemon=True)
        self._process.start()
        theirs.close()
        # It imports everything before its first part, for as long as that may take by itself.
        self._preparation = _PREPARATION * options.patience

    def run(self, part: Part, limit: float, beat: Callable[[str | None], None]) -> str | None:
        """Run a part; returns why it did not come to its end, None where it did.

        `beat` is called every second, and with whatever the part says.
        """
        end = time.monotonic() + limit + self._preparation + _GRACE
        self._preparation = 0.0
        try:
            self._connection.send((part, limit))
            while time.monotonic() < end:
                if not self._connection.poll(1.0):
                    beat(None)
                    continue
                said = self._connection.recv()
                if said is DONE:
                    return None
                beat(said)
        except (EOFError, OSError):
            self._process.join(_GRACE)
            # It ends itself with 1 at the limit.
            if self._process.exitcode not in (None, 1):
                return f"its process ended with status {self._process.exitcode}"
        return f"not done after {limit:.0f} s"

    def close(self) -> None:
        """End it, and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid or 0, signal.SIGKILL)
        self._process.kill()
        self._process.join()
        self._connection.close()


class Runner:
    """One run. What has an outcome is in `outcomes`, whatever ends the run.

    The first of its `parts` is one without which the others mean nothing.
    """

    def __init__(
        self,
        options: Options,
        screen: Screen,
        parts: Sequence[Part],
        prepare: Prepare = prepare,
    ) -> None:
        self._options = options
        self._parts = parts
        self._prepare = prepare
        self._screen = screen
        self._worker: Worker | None = None
        self.outcomes: list[Outcome] = []

    def run(self) -> None:
        """Run all parts, or only the first where that fails."""
        end = time.monotonic() + 60 * self._options.minutes
        for part in PARTS:  # what an earlier run has left is not told as this one's
            (self._options.out / f"{part.name}.json").unlink(missing_ok=True)
        try:
            for outcome in self._outcomes(end):
                self.outcomes.append(outcome)
                self._screen.end(outcome.passed, outcome.skipped != "", outcome.headline)
        finally:
            self._close()

    @property
    def passed(self) -> bool:
        """Whether every part did."""
        return all(outcome.passed for outcome in self.outcomes)

    def _outcomes(self, end: float) -> Iterator[Outcome]:
        stopped = ""
        for part in self._parts:
            left = end - time.monotonic()
            limit = min(part.limit * self._options.patience, left)
            self._screen.begin(part.name, part.about, limit)
            if not stopped and left < _LEAST:
                stopped = f"{self._options.minutes:g} minutes are over"
            if stopped:
                yield Outcome(part, 0.0, (), stopped)
                continue
            outcome = self._run(part, limit)
            yield outcome
            if part is self._parts[0] and not outcome.passed:
                stopped = f"without {part.about} nothing can be said"

    def _run(self, part: Part, limit: float) -> Outcome:
        path = self._options.out / f"{part.name}.json"
        path.unlink(missing_ok=True)
        began = time.monotonic()
        if self._worker is None:
            self._worker = Worker(self._options, self._prepare)
        failure = self._worker.run(part, limit, self._screen.beat)
        checks, facts = read(path)
        if failure is not None:
            checks.append(Check(failure, False))
        outcome = Outcome(part, time.monotonic() - began, tuple(checks))
        if not outcome.passed or facts.get("spoiled"):
            # A device may be in any state by now.
            self._close()
        return outcome

    def _close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None
