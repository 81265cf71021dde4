"""One part of the stack: a command, and what tells that it is ready."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from deploy.local.process import Process


@dataclass(frozen=True)
class Component:
    """What to run.

    Attributes:
        name: as shown to people.
        argv: the command.
        log: the file that both its outputs go to.
        probe: answers whether it is ready; may raise OSError while it is not.
        after: names of the parts that must have been ready once before it starts.
        without: one sentence on what its loss means.
        environment: its whole environment.
        check: the command that tells whether it would take its settings, for `preflight`.
        grace: seconds from SIGTERM to SIGKILL.
    """

    name: str
    argv: tuple[str, ...]
    log: Path
    probe: Callable[[], Awaitable[bool]]
    after: tuple[str, ...] = ()
    without: str = ""
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    check: tuple[str, ...] = ()
    grace: float = 10.0

    async def start(self) -> Process:
        """Starts it; call on the main thread."""
        with self.log.open("ab") as log:
            return await Process.start(self.argv, log.fileno(), self.environment)

    async def is_ready(self) -> bool:
        """Asks once, for at most two seconds."""
        try:
            return await asyncio.wait_for(self.probe(), timeout=2)
        except (OSError, TimeoutError):
            return False

    def last_lines(self, count: int) -> list[str]:
        """The end of its log, without empty lines."""
        with suppress(OSError), self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - 64 * 1024))
            lines = log.read().decode(errors="replace").splitlines()
            return [line for line in lines if line.strip()][-count:]
        return []
