"""Kills the drafter in mid-generation, and sees from the chunks what that did."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.common.result import RequestFailed, Result
from specserve.settings import StartError

# What had been drafted before the drafter died is used up by then; its restart takes longer.
SETTLED = 1.0  # seconds


@dataclass(slots=True)
class Kill:
    """Sends SIGKILL once a generation has `after` tokens. Make it just before the request."""

    pid: int
    after: int
    started: float = field(default_factory=time.perf_counter)
    at: float | None = None  # seconds after the start

    def __call__(self, tokens: int) -> None:
        if self.at is None and tokens >= self.after:
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                raise RequestFailed(f"process {self.pid} had ended before the kill.") from None
            self.at = time.perf_counter() - self.started

    def drafted_before(self, result: Result) -> int:
        """Chunks of more than one token before the kill: rounds whose draft was accepted."""
        return sum(count > 1 for at, count in result.chunks if self.at is None or at <= self.at)

    def drafted_again(self, result: Result) -> list[float]:
        """When chunks of more than one token came once it was dead, in seconds after the kill."""
        if self.at is None:
            return []
        since = [(at - self.at, count) for at, count in result.chunks]
        return [seconds for seconds, count in since if count > 1 and seconds > SETTLED]


def read_pid(text: str) -> int:
    """Read the process id of a drafter, or the path of a file that holds it.

    Raises:
        StartError: neither, or the process is no drafter.
    """
    if not text.isdecimal():
        try:
            text = Path(text).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise StartError(f"--kill-drafter: {text} is neither a number nor a file.") from None
    try:
        command = Path(f"/proc/{int(text)}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (OSError, ValueError):
        raise StartError(f"--kill-drafter: there is no process {text}.") from None
    if "drafter_svc" not in command:
        raise StartError(f"--kill-drafter: process {text} is no drafter but {command.strip()}.")
    return int(text)
