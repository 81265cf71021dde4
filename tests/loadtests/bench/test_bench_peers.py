import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtests.common.client import Client, Served
from specserve.settings import StartError
from tests.support.benchmark_runs import run, run_greedy
from tests.support.fake_gateway import Behaviour

Write = Callable[..., str]


@pytest.fixture
def with_llama(llama_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments for our arms and llama.cpp; nothing is loaded to prove the target."""

    async def prove(target: str, served: Served) -> None:
        assert target.endswith("model.gguf")

    monkeypatch.setattr("loadtests.peers.start_arms.prove", prove)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    return [
        *("--arms", "plain,speculative,llama", "--peer-target", str(file)),
        *("--llama-python", llama_python, "--peer-isa", "avx2"),
    ]


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

    monkeypatch.setattr("loadtests.peers.start_arms.hugging_face", hugging_face)
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

    monkeypatch.setattr("loadtests.peers.start_arms.hugging_face", hugging_face)
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
