import asyncio
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from loadtests.common.result import RequestFailed
from loadtests.peers.json_child import Child
from specserve.settings import StartError

# Answers in pairs and in reverse, so that two requests must be outstanding at once.
PAIRS = """
    import json, sys
    print(json.dumps({"id": 0, "value": {"ready": True}}), flush=True)
    held = []
    for line in sys.stdin:
        held.append(json.loads(line))
        if len(held) == 2 or held[0]["operation"] == "one":
            for request in reversed(held):
                answer = {"id": request["id"], "value": request.get("text")}
                print(json.dumps(answer), flush=True)
            held.clear()
"""

Write = Callable[[str], list[str]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> list[str]:
        path = tmp_path / "child.py"
        path.write_text(textwrap.dedent(text))
        return [sys.executable, str(path)]

    return write


async def test_answers_find_their_requests(write: Write) -> None:
    async with Child.running("fake", write(PAIRS)) as child:
        assert child.facts == {"ready": True}
        both = (child.ask("two", text="a"), child.ask("two", text="b"))
        assert list(await asyncio.gather(*both)) == ["a", "b"]
        assert await child.ask("one", text="c") == "c"


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "child.py" in " ".join(p.cmdline())]


async def status_becomes(process: psutil.Process, stopped: bool) -> None:
    async with asyncio.timeout(5):
        while (process.status() == psutil.STATUS_STOPPED) != stopped:
            await asyncio.sleep(0.01)


async def test_it_stands_still_unless_it_is_asked(write: Write) -> None:
    async with Child.running("fake", write(PAIRS)) as child:
        (process,) = children()
        await status_becomes(process, stopped=True)
        waiting = asyncio.create_task(child.ask("two", text="a"))
        await status_becomes(process, stopped=False)
        await child.ask("two", text="b")
        assert await waiting == "a"
        await status_becomes(process, stopped=True)
    assert not process.is_running()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('print(\'{"id": 0, "error": "No room."}\')', "fake cannot start: No room."),
        ("import nothing_of_that_name", r"ended \(1\): ModuleNotFoundError: No module named"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL, perhaps for lack of memory"),
        ("print('hello')", r"fake cannot start: the fake process ended \(0\)"),
    ],
)
async def test_a_child_that_does_not_get_ready(write: Write, text: str, sentence: str) -> None:
    with pytest.raises(StartError, match=sentence):
        async with Child.running("fake", write(text)):
            pass


async def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"nothing cannot be run \(No such file or directory\)"):
        async with Child.running("fake", [str(tmp_path / "nothing")]):
            pass


async def test_a_death_fails_what_waits_and_all_that_follows(write: Write) -> None:
    async with Child.running("fake", write(PAIRS)) as child:
        waiting = asyncio.create_task(child.ask("two", text="a"))
        await asyncio.sleep(0)
        children()[0].kill()
        for request in (waiting, child.ask("two", text="b")):
            with pytest.raises(RequestFailed, match="fake process was killed by SIGKILL"):
                await request


async def test_one_request_that_fails_leaves_the_others(write: Write) -> None:
    text = PAIRS.replace('"value": request.get("text")', '"error": "Not this one."', 1)
    async with Child.running("fake", write(text)) as child:
        for _ in range(2):
            with pytest.raises(RequestFailed, match=r"Not this one\."):
                await child.ask("one")
