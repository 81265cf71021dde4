"""A child process with all that it starts: it ends with its parent, and as a whole."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

LEASH = Path(__file__).with_name("die_with_parent.py")


class Process:
    """A running command. It leads a process group, whose other members end with it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(
        cls, argv: Sequence[str], output: int, environment: Mapping[str, str]
    ) -> "Process":
        """Starts `argv` leashed to this process; call on the main thread.

        Args:
            argv: the command.
            output: the file descriptor that both its outputs go to.
            environment: its whole environment.
        """
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-IS", str(LEASH), str(os.getpid()), "KILL", *argv),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(environment),
            start_new_session=True,
        )
        return cls(process)

    async def wait(self) -> int:
        """Its exit status; -N after signal N."""
        status = await self._process.wait()
        self._kill_group()
        return status

    async def stop(self, grace: float, hurry: asyncio.Event) -> None:
        """Asks it to end, and kills it after `grace` seconds or when `hurry` is set."""
        if self._process.returncode is None:
            self._process.terminate()
            ended = asyncio.ensure_future(self._process.wait())
            hurried = asyncio.ensure_future(hurry.wait())
            await asyncio.wait({ended, hurried}, timeout=grace, return_when="FIRST_COMPLETED")
            hurried.cancel()
            self._kill_group()
            await ended
        self._kill_group()

    async def kill(self) -> None:
        """Ends it at once, if it has not ended."""
        self._kill_group()
        await self._process.wait()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
