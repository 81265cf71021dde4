import asyncio
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtests import bench
from loadtests.arms import Arm, RestArm, Sampling, Task
from loadtests.blocks import blocks, run_block, turns
from loadtests.client import Client, Served
from loadtests.prompts import Prompt
from loadtests.result import Result
from specwire.settings import StartError
from tests.loadtests.fake_gateway import Behaviour, fake_gateway

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
    assert "speculative and plain: 2 of 6 outputs differ, first at token 9" in text
    assert "3.000 │ 100.0%" in text
    assert "8.00 ( 80%)" in text

    document = json.loads(output.read_text())
    assert "api_key" not in document["arguments"]
    assert set(document["provenance"]["packages"]) >= {"torch", "transformers", "grpcio"}
    assert document["provenance"]["machine"]["cores"] >= 1
    runs = document["runs"]
    assert len(runs) == 2 * 3 * 2
    assert {run["arm"] for run in runs} == {"plain", "speculative"}
    assert all(len(run["records"][0]["result"]["tokens"]) == 10 for run in runs)
    assert document["complete"] is True
    (level,) = document["summary"]["levels"]
    assert level["round_times"]["speculative"]["plain"]["pairs"] == 6
    ratio = level["speeds"]["speculative"]["plain"]
    assert ratio["low"] <= ratio["median"] <= ratio["high"]
    assert len(ratio["repeats"]) == 2
    # Both arms ask alike, warm-up included, but for the switch.
    switches = [body.pop("speculation") for body in behaviour.bodies]
    assert switches.count(True) == switches.count(False) == 7
    # And nobody finds cached what another one asked.
    assert len({body.pop("cache_salt") for body in behaviour.bodies}) == 14
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
        (
            ["--concurrency", "2", "--arms", "transformers", "--peer-target", "x"],
            "--arms transformers.*let 1 be among --concurrency",
        ),
        (["--concurrency", "1,0"], "--concurrency: must be greater than or equal to 1"),
        (["--concurrency", "4,4"], "--concurrency: must not name a level twice"),
        (["--also", "chain"], "--also: must be NAME=URL"),
        (["--also", "plain=http://x"], "--also: must have names of their own"),
        (["--arms", "plain,plain"], "--arms: must be some of transformers, vllm"),
        (["--arms", "fast"], "--arms: must be some of transformers, vllm"),
        (["--arms", "vllm"], "--arms vllm needs --peer-target"),
        (["--arms", "vllm", "--peer-target", "x"], "--arms vllm needs --vllm-python"),
        (
            ["--arms", "vllm-eagle3", "--peer-target", "x", "--vllm-python", "p"],
            "--arms vllm-eagle3 needs --vllm-checkpoint",
        ),
        (["--vllm-python", "p"], "--vllm-python is for --arms vllm or vllm-eagle3"),
        (["--peer-target", "x"], "--peer-target is for --arms transformers or"),
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


@pytest.fixture
def with_vllm(
    behaviour: Behaviour,
    vllm_python: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> list[str]:
    """Arguments for all arms but transformers; nothing is loaded to prove the target."""

    async def hugging_face(target: str, served: Served, _: Path) -> str:
        assert served.fingerprint == behaviour.fingerprint
        return target

    monkeypatch.setattr("loadtests.lineup.hugging_face", hugging_face)
    (tmp_path / "config.json").write_text("{}")
    return [
        *("--arms", "plain,speculative,vllm,vllm-eagle3", "--peer-target", "model"),
        *("--vllm-python", vllm_python, "--vllm-checkpoint", str(tmp_path)),
        *("--vllm-draft-length", "3"),
    ]


async def test_vllm_takes_turns_and_its_acceptance_is_compared(
    url: str,
    write_prompts: Write,
    with_vllm: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, output = write_prompts("one", "two", "three"), tmp_path / "out.json"
    arguments = ("--prompts", path, "--url", url, "--max-tokens", "10", "--repeats", "2")
    more = ("--concurrency", "1,2", "--output", str(output))
    assert await run(monkeypatch, *arguments, *more, *with_vllm) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "speculative: Acceptance by position equals vLLM's within sampling error" in text
    assert text.index("1 at once") < text.index("2 at once")

    document = json.loads(output.read_text())
    one, two = document["summary"]["levels"]
    bases = {"vllm", "vllm-eagle3", "plain"}
    assert set(one["speeds"]["speculative"]) == set(two["speeds"]["speculative"]) == bases
    assert set(one["speeds"]["vllm-eagle3"]) == {"vllm"}
    for level, requests in ((one, 6), (two, 8)):
        arms = {arm["name"]: arm for arm in level["arms"]}
        assert arms["vllm-eagle3"]["rounds"]["accepted_at"][2] == 0
        assert arms["vllm"]["first_token"]["p50"] > 0
        assert arms["vllm"]["requests"] == arms["plain"]["requests"] == requests
    peer = document["peers"]["vllm-eagle3"]
    assert peer["arguments"]["max_num_seqs"] == 2
    assert peer["arguments"]["max_model_len"] == 3 + 10 + 3 + 1
    assert peer["versions"]["python"]


async def test_a_worse_peer_is_told(
    url: str,
    write_prompts: Write,
    with_vllm: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FAKE_ACCEPTED", "1")
    path = write_prompts("one", "two")
    arguments = ("--prompts", path, "--url", url, "--max-tokens", "10", "--repeats", "1")
    assert await run(monkeypatch, *arguments, *with_vllm) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "differs from vLLM's by more than sampling error" in text
    assert "2 1.0000 0.0000 +1.0000" in re.sub("[^ -~]+ ?", "", text)


async def test_a_peer_that_dies_leaves_the_other_arms(
    url: str,
    write_prompts: Write,
    with_vllm: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def tokens(*_: object) -> list[int]:
        return [8]  # which kills the fake vLLM

    monkeypatch.setattr(Client, "tokenize", tokens)
    path = write_prompts("one", "two")
    arguments = ("--prompts", path, "--url", url, "--max-tokens", "10", "--repeats", "1")
    assert await run(monkeypatch, *arguments, *with_vllm) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "Failed (2): the vllm process was killed by SIGKILL, perhaps for lack of" in text
    assert "2 (2 failed)" in text
    assert "equal, token by token" in text


async def test_a_peer_that_does_not_start_stops_before_anything_is_measured(
    url: str,
    behaviour: Behaviour,
    write_prompts: Write,
    with_vllm: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = ["broken" if argument == "model" else argument for argument in with_vllm]
    with pytest.raises(StartError, match=r"vllm cannot start.*no weights here"):
        await run(monkeypatch, "--prompts", write_prompts("one"), "--url", url, *broken)
    assert behaviour.bodies == []


async def test_other_stacks_take_turns_if_they_serve_the_same(
    url: str,
    write_prompts: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, output = write_prompts("one"), tmp_path / "out.json"
    arguments = ["--prompts", path, "--url", url, "--max-tokens", "5", "--repeats", "1"]
    other = Behaviour(accepted=1)
    with fake_gateway(other) as chain:
        also = ("--also", f"chain={chain}", "--output", str(output))
        assert await run(monkeypatch, *arguments, *also) == 0
        assert [body["speculation"] for body in other.bodies] == [True, True]
        (level,) = json.loads(output.read_text())["summary"]["levels"]
        assert set(level["speeds"]["chain"]) == {"plain", "speculative"}
        rounds = {arm["name"]: arm["rounds"]["rounds"] for arm in level["arms"]}
        assert rounds == {"plain": 4, "speculative": 2, "chain": 2}
        other.dtype = "bfloat16"
        with pytest.raises(StartError, match="serves fake in bfloat16, which is not fake"):
            await run(monkeypatch, *arguments, *also)


async def test_an_interrupted_run_prints_and_keeps_what_it_has(
    url: str,
    behaviour: Behaviour,
    write_prompts: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, output = write_prompts("one", "two", "three"), tmp_path / "out.json"
    arguments = ("--prompts", path, "--url", url, "--max-tokens", "4", "--output", str(output))
    task = asyncio.create_task(run(monkeypatch, *arguments, "--arms", "plain"))
    while len(behaviour.bodies) < 3:
        await asyncio.sleep(0.001)
    task.cancel()  # what asyncio.run makes of Ctrl-C
    assert await task == 130
    assert "plain" in capsys.readouterr().out
    document = json.loads(output.read_text())
    assert document["complete"] is False
    assert 1 <= len(document["runs"]) < 9


def task(number: int) -> Task:
    return Task(Prompt(str(number), ("text",)), (1,), number)


def test_blocks_keep_the_loop_closed() -> None:
    tasks = [task(number) for number in range(5)]
    assert [[t.seed for t in block] for block in blocks(tasks, 1)] == [[0], [1], [2], [3], [4]]
    assert [[t.seed for t in block] for block in blocks(tasks, 2)] == [[0, 1, 2, 3], [4, 0, 1, 2]]
    assert len(blocks(tasks, 1, most=2)) == 2


class Paced:
    """Gives a token each hundredth of a second, so many as a task's seed says."""

    name = "paced"
    most = None

    async def answer(self, task: Task) -> Result:
        chunks = tuple(((i + 1) * 0.01, 1) for i in range(task.seed))
        await asyncio.sleep(task.seed * 0.01)
        return Result((0,) * task.seed, task.seed * 0.01, "length", chunks)


async def test_throughput_is_counted_while_all_clients_are_busy() -> None:
    done = await run_block(Paced(), [task(n) for n in (4, 4, 4, 40)], 2)
    assert done.seconds == pytest.approx(0.08, abs=0.03)
    # Of the long request only what had come when the other client ran out of work.
    assert 12 <= done.tokens < 24
    alone = await run_block(Paced(), [task(7)], 1)
    assert alone.seconds == pytest.approx(0.07)
    assert alone.tokens == 7


def test_every_arm_has_every_place_in_the_order() -> None:
    sampling, client = Sampling(4, 0.0), Client("http://127.0.0.1:1")
    arms: list[Arm] = [RestArm(name, client, sampling, True) for name in ("a", "b")]
    order = [(block, arm.name) for repeat in (0, 1) for block, arm in turns(arms, 2, repeat)]
    assert order[:4] == [(0, "a"), (0, "b"), (1, "b"), (1, "a")]
    assert order[4:] == [(0, "b"), (0, "a"), (1, "a"), (1, "b")]
