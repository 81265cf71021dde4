import asyncio
import json
import re
import sys
from collections.abc import Callable, Sequence
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


async def run_greedy(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    return await run(monkeypatch, *arguments, "--temperature", "0")


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
    assert await run_greedy(monkeypatch, *arguments, "--api-key", "k", "--output", str(output)) == 0

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
    assert await run_greedy(monkeypatch, *arguments) == 1
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
        (
            ["--concurrency", "2", "--arms", "llama", "--peer-target", "x", "--llama-python", "p"],
            "--arms llama.*let 1 be among --concurrency",
        ),
        (["--temperature", "3"], "--temperature: must be less than or equal to 2"),
        (["--temperature", "1,1"], "--temperature: must not name a value twice"),
        (["--arms", "llama", "--peer-target", "x"], "--arms llama needs --llama-python"),
        (["--arms", "vllm-fp32", "--peer-target", "x"], "--arms vllm-fp32 needs --vllm-python"),
        (["--llama-python", "p"], "--llama-python is for --arms llama"),
        (["--peer-isa", "avx2"], "--peer-isa is for --arms llama or transformers or"),
        (["--peer-isa", "sse"], "--peer-isa: must be 'avx2', 'avx512'"),
        (["--concurrency", "1,0"], "--concurrency: must be greater than or equal to 1"),
        (["--concurrency", "4,4"], "--concurrency: must not name a value twice"),
        (["--also", "chain"], "--also: must be NAME=URL"),
        (["--also", "plain=http://x"], "--also: must have names of their own"),
        (
            ["--arms", "plain,plain"],
            "--arms: must be some of transformers, transformers-fp32, vllm",
        ),
        (["--arms", "fast"], "--arms: must be some of transformers, transformers-fp32, vllm"),
        (["--arms", "vllm"], "--arms vllm needs --peer-target"),
        (["--arms", "vllm", "--peer-target", "x"], "--arms vllm needs --vllm-python"),
        (
            ["--arms", "vllm-eagle3", "--peer-target", "x", "--vllm-python", "p"],
            "--arms vllm-eagle3 needs --vllm-checkpoint",
        ),
        (["--vllm-python", "p"], "--vllm-python is for --arms vllm or vllm-eagle3 or vllm-fp32"),
        (["--peer-target", "x"], "--peer-target is for --arms llama or transformers or"),
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

    async def hugging_face(target: str, served: Served, dtype: str, _: Path) -> str:
        assert served.fingerprint == behaviour.fingerprint
        assert dtype == behaviour.dtype
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
    assert await run_greedy(monkeypatch, *arguments, *more, *with_vllm) == 0
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


async def test_a_peer_takes_part_in_its_other_dtype_too(
    url: str,
    behaviour: Behaviour,
    write_prompts: Write,
    vllm_python: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exported: list[str] = []

    async def hugging_face(target: str, _: Served, dtype: str, __: Path) -> str:
        exported.append(dtype)
        return target

    monkeypatch.setattr("loadtests.lineup.hugging_face", hugging_face)
    behaviour.dtype = "bfloat16"
    path, output = write_prompts("one"), tmp_path / "out.json"
    arguments = ("--prompts", path, "--url", url, "--max-tokens", "4", "--repeats", "1")
    peers = ("--arms", "plain,vllm,vllm-fp32", "--peer-target", "m", "--vllm-python", vllm_python)
    assert await run_greedy(monkeypatch, *arguments, *peers, "--output", str(output)) == 0
    document = json.loads(output.read_text())
    dtypes = {name: told["arguments"]["dtype"] for name, told in document["peers"].items()}
    assert dtypes == {"vllm": "bfloat16", "vllm-fp32": "float32"}
    assert exported == ["bfloat16", "float32"]
    (level,) = document["summary"]["levels"]
    assert set(level["speeds"]["plain"]) == {"vllm", "vllm-fp32"}


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
    assert await run_greedy(monkeypatch, *arguments, *with_vllm) == 0
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
    assert await run_greedy(monkeypatch, *arguments, *with_vllm) == 1
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
        await run_greedy(monkeypatch, "--prompts", write_prompts("one"), "--url", url, *broken)
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
        assert await run_greedy(monkeypatch, *arguments, *also) == 0
        assert [body["speculation"] for body in other.bodies] == [True, True]
        (level,) = json.loads(output.read_text())["summary"]["levels"]
        assert set(level["speeds"]["chain"]) == {"plain", "speculative"}
        rounds = {arm["name"]: arm["rounds"]["rounds"] for arm in level["arms"]}
        assert rounds == {"plain": 4, "speculative": 2, "chain": 2}
        other.dtype = "bfloat16"
        with pytest.raises(StartError, match="serves fake in bfloat16, which is not fake"):
            await run_greedy(monkeypatch, *arguments, *also)


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
    task = asyncio.create_task(run_greedy(monkeypatch, *arguments, "--arms", "plain"))
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


GREEDY, SAMPLED = Sampling(4, 0.0), Sampling(4, 1.0)


class Paced:
    """Gives a token each hundredth of a second, so many as a task's seed says."""

    name = "paced"
    most = None

    async def answer(self, task: Task, sampling: Sampling) -> Result:
        chunks = tuple(((i + 1) * 0.01, 1) for i in range(task.seed))
        await asyncio.sleep(task.seed * 0.01)
        return Result((0,) * task.seed, task.seed * 0.01, "length", chunks)


async def test_throughput_is_counted_while_all_clients_are_busy() -> None:
    done = await run_block(Paced(), [task(n) for n in (4, 4, 4, 40)], GREEDY, 2)
    assert done.seconds == pytest.approx(0.08, abs=0.03)
    # Of the long request only what had come when the other client ran out of work.
    assert 12 <= done.tokens < 24
    alone = await run_block(Paced(), [task(7)], GREEDY, 1)
    assert alone.seconds == pytest.approx(0.07)
    assert alone.tokens == 7


def test_every_arm_has_every_place_in_the_order() -> None:
    client = Client("http://127.0.0.1:1")
    arms: list[Arm] = [RestArm(name, client, True) for name in ("a", "b")]

    def order(samplings: Sequence[Sampling]) -> list[tuple[int, str, float]]:
        return [
            (block, arm.name, sampling.temperature)
            for repeat in (0, 1)
            for block, arm, sampling in turns(arms, samplings, 2, repeat)
        ]

    alone = [(block, name) for block, name, _ in order([GREEDY])]
    assert alone[:4] == [(0, "a"), (0, "b"), (1, "b"), (1, "a")]
    assert alone[4:] == [(0, "b"), (0, "a"), (1, "a"), (1, "b")]
    both = order([GREEDY, SAMPLED])
    assert both[:4] == [(0, "a", 0.0), (0, "a", 1.0), (0, "b", 0.0), (0, "b", 1.0)]
    assert both[4:8] == [(1, "a", 1.0), (1, "b", 0.0), (1, "b", 1.0), (1, "a", 0.0)]


async def test_greedy_and_sampled_outputs_take_turns_as_a_matter_of_course(
    url: str,
    behaviour: Behaviour,
    write_prompts: Write,
    with_llama: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, output = write_prompts("one", "two", "three"), tmp_path / "out.json"
    arguments = ("--prompts", path, "--url", url, "--max-tokens", "6", "--repeats", "2")
    more = ("--concurrency", "1,2", "--output", str(output))
    assert await run(monkeypatch, *arguments, *more, *with_llama) == 0

    text = " ".join(capsys.readouterr().out.split())
    sections = ["1 at once, greedy", "1 at once, T = 1", "2 at once, greedy", "2 at once, T = 1"]
    assert sorted(sections, key=text.index) == sections
    assert "llama: one request at a time, so it took part at 1 alone." in text
    for line in (
        "speculation on against off, greedy: ",
        "speculation on against off, T = 1: ",
        "plain at T = 1 against plain greedy: ",
        "llama at T = 1 against llama greedy: ",
    ):
        assert re.search(re.escape(line) + r"\d+\.\d{3} \(\d+\.\d{3}-\d+\.\d{3}\)", text), line

    document = json.loads(output.read_text())
    assert document["arguments"]["temperature"] == [0.0, 1.0]
    levels = document["summary"]["levels"]
    assert [(level["concurrency"], level["temperature"]) for level in levels] == [
        (1, 0.0), (1, 1.0), (2, 0.0), (2, 1.0),
    ]  # fmt: skip
    assert levels[0]["against_greedy"] == levels[2]["against_greedy"] == {}
    assert set(levels[1]["against_greedy"]) == {"plain", "speculative", "llama"}
    assert set(levels[3]["against_greedy"]) == {"plain", "speculative"}
    assert levels[1]["against_greedy"]["plain"]["pairs"] == 6
    # Our own outputs are compared at any temperature, those of peers where they are greedy.
    assert {a["arm"] for a in levels[0]["agreements"]} == {"speculative", "llama"}
    assert {a["arm"] for a in levels[1]["agreements"]} == {"speculative"}
    asked = [body["temperature"] for body in behaviour.bodies]
    assert asked.count(0.0) == asked.count(1.0)
    assert document["peers"]["llama"]["environment"]["OMP_NUM_THREADS"] == "3"
    assert document["arguments"]["peer_isa"] == "avx2"


@pytest.fixture
def with_llama(llama_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments for our arms and llama.cpp; nothing is loaded to prove the target."""

    async def prove(target: str, served: Served) -> None:
        assert target.endswith("model.gguf")

    monkeypatch.setattr("loadtests.lineup.prove", prove)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    return [
        *("--arms", "plain,speculative,llama", "--peer-target", str(file)),
        *("--llama-python", llama_python, "--peer-isa", "avx2"),
    ]
