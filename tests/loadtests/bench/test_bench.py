import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from specserve.settings import StartError
from tests.support.benchmark_runs import run, run_greedy
from tests.support.fake_gateway import Behaviour, fake_gateway

Write = Callable[..., str]


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
