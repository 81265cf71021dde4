import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtests.common.client import Served
from loadtests.common.result import RequestFailed
from loadtests.prefill import __main__ as prefill
from loadtests.prefill.summary import Answered, summarize
from specserve.settings import StartError
from tests.support.fake_gateway import Behaviour

Write = Callable[..., str]


async def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["prefill", *arguments])
    return await prefill.main()


@pytest.fixture
def peers(
    llama_python: str, vllm_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Arguments for all arms that need no model; nothing is loaded to prove the target."""

    async def prove(*_: object) -> None:
        pass

    async def hugging_face(target: str, _: Served, dtype: str, __: Path) -> str:
        return f"{target}-{dtype}"

    monkeypatch.setattr("loadtests.peers.start_arms.prove", prove)
    monkeypatch.setattr("loadtests.peers.start_arms.hugging_face", hugging_face)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    return [
        *("--arms", "plain,vllm,vllm-fp32,llama", "--peer-target", str(file)),
        *("--llama-python", llama_python, "--vllm-python", vllm_python),
    ]


async def test_cold_prompts_of_each_size_take_turns(
    url: str,
    behaviour: Behaviour,
    write_prompts: Write,
    peers: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    behaviour.tokenized = lambda text: [1] * len(text)
    behaviour.prefill = 2e-4
    output = tmp_path / "prefill.json"
    arguments = ["--url", url, "--prompts", write_prompts("one two", "three"), "--repeats", "3"]
    sizes = ["--tokens", "100,300", "--output", str(output), "--peer-isa", "avx2"]
    assert await run(monkeypatch, *arguments, *sizes, *peers) == 0

    text = " ".join(capsys.readouterr().out.split())
    assert text.index("prompts of about 100 tokens") < text.index("prompts of about 300 tokens")
    document = json.loads(output.read_text())
    assert document["complete"]
    assert document["peers"]["vllm-fp32"]["arguments"]["dtype"] == "float32"
    assert document["peers"]["llama"]["arguments"]["n_ctx"] == 301
    small, large = document["summary"]["sizes"]
    for size, tokens in ((small, 100), (large, 300)):
        assert [arm["name"] for arm in size["arms"]] == ["vllm", "vllm-fp32", "llama", "plain"]
        assert size["best"] in {"vllm", "vllm-fp32", "llama"}
        assert size["speeds"]["plain"].keys() == {"vllm", "vllm-fp32", "llama"}
        assert size["speeds"]["plain"]["llama"]["pairs"] == 3
        assert size["against_best"]["plain"] == size["speeds"]["plain"][size["best"]]
        plain = size["arms"][-1]
        assert plain["prompt_tokens"] == [tokens] * 3
        assert plain["first_token"]["p50"] >= tokens * behaviour.prefill
    # One text for all arms, another for each prompt, nothing of it cached, one token each.
    texts = [body["messages"][0]["content"] for body in behaviour.bodies]
    assert len(texts) == len(set(texts)) == 2 * (1 + 3)
    assert len({body["cache_salt"] for body in behaviour.bodies}) == 8
    assert {body["max_tokens"] for body in behaviour.bodies} == {1}
    assert {body["speculation"] for body in behaviour.bodies} == {False}


async def test_a_prompt_that_is_refused_ends_it(
    url: str, behaviour: Behaviour, write_prompts: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    behaviour.tokenized = lambda text: [1] * len(text)
    behaviour.refused = "aaa"
    arguments = ("--url", url, "--prompts", write_prompts("aaaaa"), "--tokens", "3")
    with pytest.raises(RequestFailed, match="refused"):
        await run(monkeypatch, *arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--tokens", "0"], "--tokens: must be greater than or equal to 1"),
        (["--arms", "llama", "--peer-target", "x"], "--arms llama needs --llama-python"),
    ],
)
async def test_bad_arguments(
    write_prompts: Write, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    with pytest.raises(StartError, match=sentence):
        await run(monkeypatch, "--prompts", write_prompts("one"), *arguments)


def test_ours_are_set_against_the_fastest_peer_of_a_size() -> None:
    seconds = {"transformers": 2.0, "transformers-fp32": 1.0, "plain": 0.5, "speculative": 2.0}
    answered = [
        Answered(900, repeat, arm, 900, each * (1 + repeat))
        for repeat in range(3)
        for arm, each in seconds.items()
    ]
    (size,) = summarize(answered).sizes
    assert size.best == "transformers-fp32"
    assert {name: ratio.median for name, ratio in size.against_best.items()} == {
        "plain": 2.0,
        "speculative": 0.5,
    }
    assert size.speeds["plain"]["transformers"].median == 4.0
    (alone,) = summarize([one for one in answered if one.arm == "plain"]).sizes
    assert (alone.best, alone.against_best, alone.speeds) == (None, {}, {})
