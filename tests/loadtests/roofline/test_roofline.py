import json
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from loadtests.common.result import RequestFailed
from loadtests.peers.matmul_time import TimedProduct
from loadtests.peers.memory_bandwidth import bandwidth
from loadtests.peers.transformers_child import Reference
from loadtests.peers.transformers_peer import TransformersPeer
from loadtests.roofline import __main__ as roofline
from tests.support.fake_gateway import Behaviour

Write = Callable[..., str]


class FakePeer:
    """4 GB/s, so that layers take 4 ms and the head 0.75 ms; the fake gateway's rounds take 10.

    The head's product takes 0.2 ms for each row: more than the drawing of 1 ms, for many.
    """

    facts: ClassVar[dict[str, Any]] = {"weights": {"layers": 16_000_000, "head": 3_000_000}}

    def check(self, *_: object) -> None:
        pass

    async def bandwidth(self) -> float:
        return 4e9

    async def head(self, rows: int, level: str | None) -> float:
        return rows * 2e-4


@pytest.fixture(autouse=True)
def peer(monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def running(*_: str) -> AsyncGenerator[FakePeer]:
        yield FakePeer()

    monkeypatch.setattr(TransformersPeer, "running", running)


async def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["roofline", *arguments, "--target", "tiny"])
    return await roofline.main()


async def test_a_round_beside_what_its_weights_take(
    url: str,
    behaviour: Behaviour,
    write_prompts: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "roofline.json"
    arguments = ["--url", url, "--prompts", write_prompts("one", "two", "three")]
    sizes = ["--max-tokens", "10", "--repeats", "2", "--output", str(output)]
    assert await run(monkeypatch, *arguments, *sizes, "--concurrency", "1,2") == 0

    text = " ".join(capsys.readouterr().out.split())
    assert "Memory gave 4.0 GB/s (4.0 to 4.0); weights: 16 MB layers and 3 MB head." in text
    assert text.index("at concurrency 1, ms") < text.index("at concurrency 2, ms")
    document = json.loads(output.read_text())
    assert len(document["runs"]) == 2 * 4 * (3 + 2)
    modes = document["summary"]["modes"]
    kinds = [(mode["concurrency"], mode["temperature"], mode["speculation"]) for mode in modes]
    ways = [(0.0, False), (0.0, True), (1.0, False), (1.0, True)]
    assert kinds == [(level, *way) for level in (1, 2) for way in ways]
    for mode in modes:
        rows = mode["concurrency"] * (4 if mode["speculation"] else 1)
        assert mode["tokens"] == (4.0 if mode["speculation"] else 1.0)
        assert mode["head_ms"] == pytest.approx(0.2 * rows)
        assert mode["target"]["median"] == pytest.approx(8 / 4)
        assert mode["forward"]["median"] == pytest.approx(9 / 4.75)
        drawing = 1 - 0.2 * rows
        assert mode["drawing"]["median"] == pytest.approx(drawing / 10)
        # Queue, wire and host too.
        assert mode["others"]["median"] == pytest.approx((0.5 + drawing) / 10)
    # After the warm-up a wave holds as many requests as are to run at once, of one mode.
    asked = [(body["speculation"], body["temperature"]) for body in behaviour.bodies]
    alone, together = asked[12:24], asked[24:40]
    assert all(asked.count((on, float(t))) == len(asked) / 4 for on in (0, 1) for t in (0, 1))
    assert len(set(alone[:4])) == 4
    assert all(together[i] == together[i + 1] for i in range(0, len(together), 2))


async def test_a_failed_request_is_no_measurement(
    url: str, write_prompts: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--url", url, "--prompts", write_prompts("one", "refuse"), "--concurrency", "1")
    with pytest.raises(RequestFailed, match="refused"):
        await run(monkeypatch, *arguments)


def test_weights_are_what_a_forward_reads(tiny_llama: Path) -> None:
    reference = Reference.load(str(tiny_llama), "float32")
    model, weights = reference.model, reference.facts["weights"]
    assert weights["head"] == model.lm_head.weight.nbytes
    inner = sum(p.nbytes for p in model.model.parameters())
    assert weights["layers"] == inner - model.model.embed_tokens.weight.nbytes


def test_bandwidth_is_that_of_a_memory() -> None:
    assert 1e8 < bandwidth(torch.device("cpu"), 1 << 24) < 1e13


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_product_of_more_rows_takes_longer(dtype: torch.dtype) -> None:
    timed = TimedProduct(torch.ones(2048, 1024, dtype=dtype), between=1 << 20)
    assert 0 < timed.seconds(1) < timed.seconds(512)
