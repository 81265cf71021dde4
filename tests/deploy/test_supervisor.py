"""The supervisor, over small programs that stand for the services."""

import asyncio
import io
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from deploy.local import supervisor
from deploy.local.component import Component
from deploy.local.status_table import StatusTable
from deploy.local.supervisor import PartFailedError, Supervisor
from specserve.settings import StartError

# Writes "+name" to the journal when it starts and "-name" when SIGTERM has ended it.
STEADY = """
import os, pathlib, signal, sys, time
name, folder = sys.argv[1], pathlib.Path(sys.argv[2])
def note(mark):
    with (folder / "journal").open("a") as journal:
        journal.write(mark + name + "\\n")
def end(*_):
    note("-")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
note("+")
(folder / (name + ".pid")).write_text(str(os.getpid()))
(folder / (name + ".ready")).touch()
time.sleep(600)
"""
DEAF = STEADY.replace("signal.SIGTERM, end", "signal.SIGTERM, signal.SIG_IGN")
CRASHING = "print('first'); print('the reason'); raise SystemExit(3)"
TELLING = """
import json, sys, time
def tell(event, level):
    print(json.dumps({"event": event, "level": level, "logger": "__main__"}), flush=True)
tell("unpacking, once", "info")
tell("it is slow here", "warning")
"""
WITH_CHILD = """
import subprocess, sys, pathlib
name, folder = sys.argv[1], pathlib.Path(sys.argv[2])
child = subprocess.Popen(["sleep", "600"])
(folder / "grandchild").write_text(str(child.pid))
(folder / (name + ".ready")).touch()
child.wait()
"""


class Stage:
    """A folder with fake parts, and the screen that they are shown on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hurry = asyncio.Event()
        self.output = io.StringIO()
        self.ready = asyncio.Event()

    def part(
        self, name: str, program: str = STEADY, after: tuple[str, ...] = (), grace: float = 10
    ) -> Component:
        async def probe() -> bool:
            return (self.folder / f"{name}.ready").exists()

        return Component(
            name=name,
            argv=(sys.executable, "-S", "-c", program, name, str(self.folder)),
            log=self.folder / f"{name}.log",
            probe=probe,
            after=after,
            without=f"No {name}, no fun.",
            grace=grace,
        )

    @asynccontextmanager
    async def running(self, *parts: Component) -> AsyncIterator[None]:
        """The parts are up inside and stopped after."""
        screen = StatusTable(Console(file=self.output))

        async def on_ready() -> None:
            self.ready.set()

        run = asyncio.ensure_future(Supervisor(parts, screen, self.hurry).run(on_ready))
        ready = asyncio.ensure_future(self.ready.wait())
        await asyncio.wait({run, ready}, return_when="FIRST_COMPLETED", timeout=10)
        ready.cancel()
        if run.done():
            await run
        try:
            yield
        finally:
            run.cancel()
            with suppress(asyncio.CancelledError):
                await run

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.01)

    @property
    def journal(self) -> list[str]:
        return (self.folder / "journal").read_text().split()

    def pid(self, name: str) -> int:
        return int((self.folder / f"{name}.pid").read_text())


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY", 0.05)
    monkeypatch.setattr(supervisor, "POLL", 0.01)


async def test_a_part_starts_after_those_it_needs_and_stops_before_them(stage: Stage) -> None:
    parts = (stage.part("a"), stage.part("b", after=("a",)), stage.part("c", after=("a", "b")))
    async with stage.running(*parts):
        assert stage.journal == ["+a", "+b", "+c"]
    assert stage.journal == ["+a", "+b", "+c", "-c", "-b", "-a"]
    shown = [line.split()[:2] for line in stage.output.getvalue().splitlines()]
    assert shown[:6] == [[n, s] for n in "abc" for s in ("starting", "ready")]
    assert shown[6:] == [[n, "stopped"] for n in "cba"]


async def test_all_parts_are_ready_before_it_says_so(stage: Stage) -> None:
    late = "import time; time.sleep(0.3)\n" + STEADY
    async with stage.running(stage.part("a"), stage.part("b", late)):
        assert (stage.folder / "b.ready").exists()


async def test_a_crash_at_the_start_stops_everything(stage: Stage) -> None:
    bad = stage.part("bad", CRASHING, after=("good",))
    with pytest.raises(PartFailedError) as failure:
        async with stage.running(stage.part("good"), bad):
            pass
    assert str(failure.value) == "The bad ended with status 3 before it was ready."
    assert failure.value.part.last_lines(1) == ["the reason"]
    assert not stage.ready.is_set()
    assert stage.journal == ["+good", "-good"]


async def test_a_command_that_cannot_run_is_a_crash_at_the_start(stage: Stage) -> None:
    part = Component(
        "lost", ("/no/such/program",), stage.folder / "lost.log", stage.part("x").probe
    )
    with pytest.raises(PartFailedError):
        async with stage.running(part):
            pass
    assert "cannot be run" in part.last_lines(1)[0]


async def test_something_else_at_a_parts_address_is_not_taken_for_it(stage: Stage) -> None:
    (stage.folder / "b.ready").touch()
    with pytest.raises(StartError, match="answers already where the b is to listen"):
        async with stage.running(stage.part("a"), stage.part("b", after=("a",))):
            pass
    assert stage.journal == ["+a", "-a"]


async def test_a_part_that_crashes_later_comes_back_and_the_others_stay(stage: Stage) -> None:
    async with stage.running(stage.part("a"), stage.part("b")):
        first, other = stage.pid("a"), stage.pid("b")
        (stage.folder / "a.ready").unlink()
        os.kill(first, signal.SIGKILL)
        await stage.until(lambda: stage.journal.count("+a") == 2)
        await stage.until(lambda: stage.output.getvalue().count("a         ready") == 2)
        assert stage.pid("a") != first
        assert stage.pid("b") == other
        assert psutil.pid_exists(other)
    assert "The a was killed by SIGKILL." in stage.output.getvalue()
    assert "No a, no fun. It starts again in 0.05 s." in stage.output.getvalue()


async def test_restarts_that_fail_wait_longer_each_time(stage: Stage) -> None:
    once = "import pathlib, sys\nif (pathlib.Path(sys.argv[2]) / 'a.pid').exists(): sys.exit(7)\n"
    async with stage.running(stage.part("a", once + STEADY)):
        (stage.folder / "a.ready").unlink()
        os.kill(stage.pid("a"), signal.SIGKILL)
        await stage.until(lambda: "again in 0.4 s" in stage.output.getvalue())
    shown = stage.output.getvalue()
    delays = [line.split()[-2] for line in shown.splitlines() if "starts again" in line]
    assert delays == ["0.05", "0.1", "0.2", "0.4"]
    assert shown.count("ended with status 7") == 3


async def test_what_a_part_says_while_it_starts_is_shown(stage: Stage) -> None:
    async with stage.running(stage.part("a", TELLING + STEADY)):
        pass
    shown = stage.output.getvalue().splitlines()
    told = ["a         starting", "a         unpacking, once", "a: it is slow here"]
    assert shown[:3] == told
    assert shown[3].startswith("a         ready after")


async def test_a_part_that_ignores_sigterm_is_killed_after_its_grace(stage: Stage) -> None:
    async with stage.running(stage.part("deaf", DEAF, grace=0.3)):
        pid = stage.pid("deaf")
        started = time.monotonic()
    assert 0.3 <= time.monotonic() - started < 3
    assert not psutil.pid_exists(pid)


async def test_hurry_ends_the_wait_for_a_drain(stage: Stage) -> None:
    async with stage.running(stage.part("deaf", DEAF, grace=60)):
        pid = stage.pid("deaf")
        asyncio.get_running_loop().call_later(0.2, stage.hurry.set)
        started = time.monotonic()
    assert time.monotonic() - started < 5
    assert not psutil.pid_exists(pid)


async def test_what_a_part_started_ends_with_it(stage: Stage) -> None:
    async with stage.running(stage.part("a", WITH_CHILD)):
        grandchild = int((stage.folder / "grandchild").read_text())
        assert psutil.pid_exists(grandchild)
    await stage.until(
        lambda: (
            not psutil.pid_exists(grandchild)
            or psutil.Process(grandchild).status() == psutil.STATUS_ZOMBIE
        )
    )
