import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtests import bench
from loadtests.arms import Arm, RestArm, Sampling, Task, blocks, turns
from loadtests.client import Client
from loadtests.prompts import Prompt
from specwire.settings import StartError
from tests.loadtests.fake_gateway import Behaviour

Write = Callable[..., str]


async def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    return await bench.main()


async def test_end_to_end(
    url: str,
    behaviour: Behaviour,
    write_prompts: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, output = write_prompts("one", "differ", "three"), tmp_path / "out.json"
    arguments = ("--prompts", path, "--url", url, "--max-tokens", "10", "--repeats", "2")
    assert await run(monkeypatch, *arguments, "--api-key", "k", "--output", str(output)) == 0

    text = " ".join(capsys.readouterr().out.split())
    assert "speculative/plain" in text
    assert "2 of 6 outputs differ, first at token 9" in text
    assert "3.000 over all rounds, 3.000 over rounds with a draft, which 100.0% of 18" in text
    assert "8.00 ( 80%)" in text

    document = json.loads(output.read_text())
    assert "api_key" not in document["arguments"]
    assert set(document["provenance"]["packages"]) >= {"torch", "transformers", "grpcio"}
    assert document["provenance"]["machine"]["cores"] >= 1
    runs = document["runs"]
    assert len(runs) == 2 * 3 * 2
    assert {run["arm"] for run in runs} == {"plain", "speculative"}
    assert all(len(run["records"][0]["result"]["tokens"]) == 10 for run in runs)
    ratio = document["summary"]["ratios"]["speculative/plain"]
    assert ratio["low"] <= ratio["median"] <= ratio["high"]
    assert len(ratio["repeats"]) == 2
    # Both arms ask alike, warm-up included, but for the switch.
    switches = [body.pop("speculation") for body in behaviour.bodies]
    assert switches.count(True) == switches.count(False) == 7
    assert len({json.dumps(body) for body in behaviour.bodies}) == 3
    assert all(body["ignore_eos"] for body in behaviour.bodies)


async def test_failed_requests_are_told_and_set_the_status(
    url: str,
    write_prompts: Write,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_prompts("one", "refuse")
    arguments = ("--prompts", path, "--url", url, "--max-tokens", "4", "--repeats", "1")
    assert await run(monkeypatch, *arguments) == 1
    text = capsys.readouterr().out
    assert "Failed (2): 400, This prompt is refused." in text
    assert "2 (1 failed)" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--concurrency", "2", "--peer-target", "x"], "--peer-target.*--concurrency 1"),
        (["--output", "/nowhere/at/all"], "--output: must be in a folder that exists"),
        (["--max-tokens", "1"], "--max-tokens: must be greater than or equal to 2"),
        (["--frobnicate"], "frobnicate"),
    ],
)
async def test_bad_arguments(
    write_prompts: Write, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    with pytest.raises(StartError, match=sentence):
        await run(monkeypatch, "--prompts", write_prompts("one"), *arguments)


def task(number: int) -> Task:
    return Task(Prompt(str(number), ("text",)), (1,), number)


def test_blocks_keep_the_loop_closed() -> None:
    tasks = [task(number) for number in range(5)]
    assert [[t.seed for t in block] for block in blocks(tasks, 1)] == [[0], [1], [2], [3], [4]]
    assert [[t.seed for t in block] for block in blocks(tasks, 2)] == [[0, 1, 2, 3], [4, 0, 1, 2]]


def test_every_arm_has_every_place_in_the_order() -> None:
    sampling, client = Sampling(4, 0.0), Client("http://127.0.0.1:1")
    arms: list[Arm] = [RestArm(client, sampling, False), RestArm(client, sampling, True)]
    order = [(repeat, block, arm.name) for repeat, block, arm in turns(arms, 2, 2)]
    assert order == [
        (0, 0, "plain"),
        (0, 0, "speculative"),
        (0, 1, "speculative"),
        (0, 1, "plain"),
        (1, 0, "speculative"),
        (1, 0, "plain"),
        (1, 1, "plain"),
        (1, 1, "speculative"),
    ]
