import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from loadtests.common.client import Served
from loadtests.common.result import Result
from loadtests.exactness import __main__ as exactness
from loadtests.peers.transformers_child import Reference
from loadtests.peers.transformers_peer import TransformersPeer
from specserve.settings import StartError
from tests.support.fake_gateway import Behaviour

PROMPT = [3, 4, 5]  # what the fake gateway's /tokenize answers


class InProcess(TransformersPeer):
    """A peer whose model is in the test's own process."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self.fingerprint = reference.fingerprint

    async def _ask(self, operation: str, **arguments: Any) -> Any:
        return getattr(self._reference, operation)(**arguments)


@pytest.fixture
def reference(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, behaviour: Behaviour) -> Reference:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    reference = Reference(model)
    behaviour.fingerprint = reference.fingerprint

    @asynccontextmanager
    async def running(*_: str) -> AsyncGenerator[TransformersPeer]:
        yield InProcess(reference)

    monkeypatch.setattr(TransformersPeer, "running", running)
    return reference


Check = Callable[..., Any]


@pytest.fixture
def check(url: str, write_prompts: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Check:
    path = write_prompts("one", "two")
    command = ["--prompts", path, "--target", "tiny", "--url", url, "--max-tokens", "12"]

    async def run() -> int:
        monkeypatch.setattr(sys, "argv", ["exactness", *command])
        return await exactness.main()

    return run


def answer(reference: Reference) -> list[int]:
    tokens: list[int] = reference.generate(PROMPT, 12)["tokens"]
    return tokens


async def test_equal_outputs_pass(
    reference: Reference, behaviour: Behaviour, check: Check, capsys: pytest.CaptureFixture[str]
) -> None:
    behaviour.answers = dict.fromkeys(("one", "two"), answer(reference))
    assert await check() == 0
    text = capsys.readouterr().out
    assert "Passed." in text
    assert "0 near-ties" in text
    caps = [body["speculation"] for body in behaviour.bodies]
    assert caps.count(False) == 2
    assert [caps.count({"max_draft_tokens": n}) for n in (1, 3, 5, 8)] == [2, 2, 2, 2]


async def test_a_wrong_token_is_a_fault(
    reference: Reference, behaviour: Behaviour, check: Check, capsys: pytest.CaptureFixture[str]
) -> None:
    right = answer(reference)
    wrong = [*right[:5], (right[5] + 1) % 97, *right[6:]]
    behaviour.answers = {"one": right, "two": wrong}
    assert await check() == 1
    assert "FAULT  Wrong token: prompt 82, token 5" in capsys.readouterr().out


async def test_a_stack_that_never_drafts_shows_nothing(
    reference: Reference,
    behaviour: Behaviour,
    check: Check,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    behaviour.answers = dict.fromkeys(("one", "two"), answer(reference))
    report = "tests.support.fake_gateway.report"
    from tests.support.fake_gateway import report as honest

    monkeypatch.setattr(report, lambda rounds, _, accepted: honest(rounds, 0, accepted))
    assert await check() == 1
    assert "FAULT  8 at once: nothing was drafted" in capsys.readouterr().out


async def test_refused_requests_are_faults(
    reference: Reference, behaviour: Behaviour, check: Check, capsys: pytest.CaptureFixture[str]
) -> None:
    behaviour.answers = dict.fromkeys(("one", "two"), answer(reference))
    behaviour.refused = "two"
    assert await check() == 1
    assert "FAULT  off: prompt 82 failed: 400" in capsys.readouterr().out


async def test_beyond_fp32_the_measured_noise_tells_near_ties_from_wrong_tokens(
    reference: Reference,
    behaviour: Behaviour,
    check: Check,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = answer(reference)
    wrong = [*right[:11], (right[11] + 1) % 97]
    behaviour.answers = {"one": right, "two": wrong}
    behaviour.dtype = "bfloat16"
    below = reference.score([*PROMPT, *wrong], len(PROMPT), False)[11]
    for noise, code in ((below * 0.99, 1), (below * 1.01, 0)):
        monkeypatch.setattr(reference, "noise", lambda noise=noise, **_: noise)
        assert await check() == code
    assert "1 near-ties" in capsys.readouterr().out


async def test_it_refuses_other_weights(
    reference: Reference, behaviour: Behaviour, check: Check
) -> None:
    behaviour.fingerprint = "0" * 64
    with pytest.raises(StartError, match="is not the model that is served"):
        await check()


async def test_the_real_child_process(tiny_llama: Path) -> None:
    reference = Reference(AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32))
    expected = reference.generate(PROMPT, 6, ignore_eos=True)["tokens"]
    async with TransformersPeer.running(str(tiny_llama), "float32") as peer:
        peer.check("tiny", Served("tiny", "float32", reference.fingerprint, {}))
        result = await peer.generate(PROMPT, max_tokens=6, ignore_eos=True)
        gaps = await peer.score(PROMPT, result.tokens, stopped=False)
    assert isinstance(result, Result)
    assert list(result.tokens) == expected
    assert result.seconds > 0
    assert gaps == pytest.approx([0.0] * 6, abs=1e-4)


async def test_a_target_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="transformers cannot start"):
        async with TransformersPeer.running(str(tmp_path), "float32"):
            pass
