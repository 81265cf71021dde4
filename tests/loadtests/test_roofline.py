import json
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from loadtests import roofline
from loadtests.bandwidth import bandwidth
from loadtests.peer import Peer
from loadtests.reference import Reference
from tests.loadtests.fake_gateway import Behaviour


class FakePeer:
    """4 GB/s, so that layers take 4 ms and the head 0.75 ms; the fake gateway's rounds take 10."""

    facts: ClassVar[dict[str, Any]] = {"weights": {"layers": 16_000_000, "head": 3_000_000}}

    def check(self, *_: object) -> None:
        pass

    async def bandwidth(self) -> float:
        return 4e9


async def test_a_round_beside_what_its_weights_take(
    url: str,
    behaviour: Behaviour,
    write_prompts: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    @asynccontextmanager
    async def running(*_: str) -> AsyncGenerator[FakePeer]:
        yield FakePeer()

    monkeypatch.setattr(Peer, "running", running)
    output = tmp_path / "roofline.json"
    arguments = ["--url", url, "--prompts", write_prompts("one", "two"), "--target", "tiny"]
    sizes = ["--max-tokens", "10", "--repeats", "2", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["roofline", *arguments, *sizes])
    assert await roofline.main() == 0

    text = " ".join(capsys.readouterr().out.split())
    assert "Memory gave 4.0 GB/s (4.0 to 4.0); weights: 16 MB layers and 3 MB head." in text
    document = json.loads(output.read_text())
    assert len(document["runs"]) == 2 * 2 * 2
    off, on = document["summary"]["modes"]
    assert (off["tokens"], on["tokens"]) == (1.0, 4.0)
    for mode in (off, on):
        assert mode["target"]["median"] == pytest.approx(8 / 4)
        assert mode["forward"]["median"] == pytest.approx(9 / 4.75)
        # Queue, wire and host, and the quarter of a millisecond that the head does not explain.
        assert mode["others"]["median"] == pytest.approx((0.5 + 0.25) / 10)
    order = [body["speculation"] for body in behaviour.bodies[2:]]
    assert order == [False, True, True, False, True, False, False, True]


def test_weights_are_what_a_forward_reads(tiny_llama: Path) -> None:
    reference = Reference.load(str(tiny_llama), "float32")
    model, weights = reference.model, reference.facts["weights"]
    assert weights["head"] == model.lm_head.weight.nbytes
    inner = sum(p.nbytes for p in model.model.parameters())
    assert weights["layers"] == inner - model.model.embed_tokens.weight.nbytes


def test_bandwidth_is_that_of_a_memory() -> None:
    assert 1e8 < bandwidth(torch.device("cpu"), 1 << 24) < 1e13
