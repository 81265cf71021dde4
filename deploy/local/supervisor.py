"""Starts the parts, restarts the ones that crash, and stops them in reverse order."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Sequence

from deploy.local.component import Component
from deploy.local.process import Process
from deploy.local.startup_log import StartupLog
from deploy.local.status_table import StatusTable
from specserve.settings import StartError

FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0  # seconds before a restart; doubled each time
STEADY = 60.0  # seconds after which a part that was ready is no longer in a row of crashes
POLL = 0.1  # seconds between two questions for readiness


class PartFailedError(Exception):
    """A part ended before it was ready for the first time."""

    def __init__(self, part: Component, status: int) -> None:
        super().__init__(f"The {part.name} {describe(status)} before it was ready.")
        self.part = part
        self.status = status


class Supervisor:
    """Keeps the parts running until it is cancelled. A part's first start must succeed."""

    def __init__(
        self, parts: Sequence[Component], screen: StatusTable, hurry: asyncio.Event
    ) -> None:
        """Takes the parts in the order of their start; `hurry` set ends a drain at once."""
        self._hurry = hurry
        self._parts = parts
        self._screen = screen
        self._ready = {part.name: asyncio.Event() for part in parts}
        self._processes: dict[str, Process] = {}

    async def run(self, on_ready: Callable[[], Awaitable[None]]) -> None:
        """Runs until cancelled; awaits `on_ready()` once all parts are.

        Raises:
            PartFailedError: a part crashed in its first start; the others have been stopped.
            StartError: something else listens where a part was to.
        """
        self._screen.watch([part.name for part in self._parts])
        try:
            async with asyncio.TaskGroup() as group:
                for part in self._parts:
                    group.create_task(self._keep(part))
                for event in self._ready.values():
                    await event.wait()
                self._screen.settle()
                await on_ready()
        except* (PartFailedError, StartError) as failures:
            first: BaseException = failures
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            raise first from None
        finally:
            self._screen.settle()
            await self._stop()

    async def _keep(self, part: Component) -> None:
        for name in part.after:
            await self._ready[name].wait()
        if await part.is_ready():  # before it runs: the port was taken while others started
            raise StartError(f"Something else answers already where the {part.name} is to listen.")
        if (status := await self._start(part)) is not None:
            raise PartFailedError(part, status)
        self._ready[part.name].set()
        delay = FIRST_DELAY
        while True:
            ready_at = time.monotonic()
            if status is None:
                status = await self._processes[part.name].wait()
            if time.monotonic() - ready_at > STEADY:
                delay = FIRST_DELAY
            self._report_loss(part, status, delay)
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY)
            status = await self._start(part)

    async def _start(self, part: Component) -> int | None:
        """Returns None as soon as the part is ready, its exit status if it ends before."""
        self._screen.state(part.name, "starting")
        journal = StartupLog(part.log)
        process = self._processes[part.name] = await part.start()
        ended = asyncio.ensure_future(process.wait())
        try:
            while not ended.done():
                ready = await part.is_ready()
                self._tell(part, journal)
                if ready and not ended.done():
                    self._screen.state(part.name, "ready")
                    return None
                await asyncio.wait({ended}, timeout=POLL)
            return ended.result()
        finally:
            ended.cancel()

    def _tell(self, part: Component, journal: StartupLog) -> None:
        for entry in journal.news():
            if entry.warning:
                self._screen.warn(f"{part.name}: {entry.text}")
            else:
                self._screen.doing(part.name, entry.text)

    def _report_loss(self, part: Component, status: int, delay: float) -> None:
        self._screen.say(f"The {part.name} {describe(status)}. Its log, {part.log}, ends so:")
        for line in part.last_lines(5):
            self._screen.say(f"    {line}")
        self._screen.say(f"{part.without} It starts again in {delay:g} s.")

    async def _stop(self) -> None:
        for part in reversed(self._parts):
            if (process := self._processes.get(part.name)) is not None:
                await process.stop(part.grace, self._hurry)
                self._screen.state(part.name, "stopped")


def describe(status: int) -> str:
    """How a process ended, as the rest of a sentence about it."""
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"
