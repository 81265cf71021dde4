"""A child process that answers JSON lines, several requests at once, and stands still between them.

The child first says `{"id": 0, "value": {...}}`. After that every line
`{"id": N, "operation": NAME, ...}` gets one answer, in any order: `{"id": N, "value": ...}`, or
`{"id": N, "error": "why"}`. It ends when its input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import signal
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import IO, Any

from loadtests.common.result import RequestFailed
from specserve.settings import StartError

LONGEST_LINE = 1 << 24  # bytes
GRACE = 15.0  # seconds in which a child may end by itself
LOG_TAIL = 1 << 16  # bytes

_ERROR = re.compile(r"\b(?:[A-Z]\w*(?:Error|Exception)|Killed): .+")


class Child:
    """A process group of its own, which runs only while it is asked something.

    Stopped and continued by signals, since an idle engine may go on polling for a while, on cores
    that another arm is measured on.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: IO[bytes]) -> None:
        self.facts: Mapping[str, Any] = {}
        self._name = name
        self._process = process
        self._log = log
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._ended: str | None = None

    @classmethod
    @asynccontextmanager
    async def running(
        cls, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> AsyncGenerator[Child]:
        """Start `command` and wait until it is ready; its group ends with the block.

        Raises:
            StartError: it cannot be started, or says that it cannot do its work.
        """
        with tempfile.TemporaryFile() as log:
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=log,
                    limit=LONGEST_LINE,
                    env=environment,
                    # Of this session still: where this process dies, the kernel hangs up on the
                    # stopped group and lets it go on to its end.
                    process_group=0,
                )
            except OSError as error:
                raise StartError(
                    f"{name} cannot start: {command[0]} cannot be run ({error.strerror})."
                ) from None
            child = cls(name, process, log)
            _, ready = child._expect()
            reader = asyncio.create_task(child._read())
            try:
                child.facts = await child._first(ready)
                yield child
            finally:
                await child._end()
                await reader

    async def ask(self, operation: str, **arguments: Any) -> Any:
        """Ask for one thing.

        Raises:
            RequestFailed: the child says why it cannot do that, or it has ended.
        """
        if self._ended is not None:
            raise RequestFailed(self._ended)
        self._signal(signal.SIGCONT)
        number, answer = self._expect()
        assert self._process.stdin is not None
        request = {"id": number, "operation": operation, **arguments}
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        try:
            return await answer
        finally:
            self._waiting.pop(number, None)
            self._rest()

    def _expect(self) -> tuple[int, asyncio.Future[Any]]:
        """The number of a new request and its answer to come; 0 is that the child is ready."""
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        return number, self._waiting[number]

    async def _first(self, ready: asyncio.Future[Any]) -> Mapping[str, Any]:
        try:
            facts: Mapping[str, Any] = await ready
        except RequestFailed as error:
            text, cause = str(error), self._cause()
            because = f" ({cause})" if cause and cause not in text else ""
            raise StartError(f"{self._name} cannot start: {text}{because}") from None
        self._rest()
        return facts

    async def _read(self) -> None:
        """Hand answers out until there are no more; whoever still waits is told why."""
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError, LookupError, TypeError):  # no line of the protocol
            while line := await self._process.stdout.readline():
                message = json.loads(line)
                answer = self._waiting.pop(message["id"])
                if answer.done():
                    continue
                if "error" in message:
                    answer.set_exception(RequestFailed(message["error"]))
                else:
                    answer.set_result(message["value"])
        self._ended = self._why(await self._leave())
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(RequestFailed(self._ended))

    def _why(self, status: int) -> str:
        if status < 0:
            name = signal.Signals(-status).name
            memory = ", perhaps for lack of memory" if -status == signal.SIGKILL else ""
            return f"the {self._name} process was killed by {name}{memory}."
        return ": ".join(
            filter(None, [f"the {self._name} process ended ({status})", self._cause()])
        )

    def _cause(self) -> str:
        """The last error that the child has logged, or else its last line."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - LOG_TAIL))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        errors = [found[0] for line in lines if (found := _ERROR.search(line))]
        # An engine's front end only points at what its other processes have said.
        causes = [error for error in errors if "root cause" not in error]
        return (causes or lines or [""])[-1].strip()

    def _rest(self) -> None:
        if not self._waiting:
            self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    async def _end(self) -> None:
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._leave()

    async def _leave(self) -> int:
        """Wait for the child to end, then end what it may have left; returns its status."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._process.wait()), GRACE)
        self._signal(signal.SIGKILL)
        return await self._process.wait()
