"""Training data from a real verifier process: states of documents, and conversations."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from drafter_svc.train.target.remote_source import RemoteSource
from speckernels.fingerprint import target_fingerprint
from tests.integration.conftest import Cluster, wait_until
from tests.support.process import spawn_module

LAYERS = (0, 2, 4)  # 4: what leaves the last layer


def documents(count: int, length: int = 200) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    sizes = torch.randint(1, length, (count,), generator=generator).tolist()
    return [torch.randint(2, 97, (n,), generator=generator).tolist() for n in sizes]


def check(source: RemoteSource, model: Any, texts: list[list[int]]) -> None:
    captured = source.capture(texts, LAYERS)
    assert len(captured) == len(texts)
    for got, text in zip(captured, texts, strict=True):
        last: list[torch.Tensor] = []
        hook = model.model.norm.register_forward_pre_hook(lambda _, a, last=last: last.append(a[0]))
        with torch.inference_mode():
            out = model.model(torch.tensor([text]), output_hidden_states=True)
        hook.remove()
        states = [*out.hidden_states[:-1], *last]
        wanted = torch.cat([states[i][0] for i in LAYERS], -1)
        # bf16 rounds the fp32 states that both computed.
        for ours, theirs in ((got.features, wanted), (got.final, out.last_hidden_state[0])):
            assert ours.dtype == torch.bfloat16
            torch.testing.assert_close(ours.float(), theirs, atol=1e-4, rtol=2.0**-8)


def test_states_are_those_of_transformers_through_a_kill(
    verifier: Cluster, tiny_reference: PreTrainedModel
) -> None:
    source = RemoteSource([verifier.verifier], target_fingerprint(tiny_reference))
    try:
        check(source, tiny_reference, documents(40))
        with ThreadPoolExecutor(1) as pool:
            texts = documents(4000)
            capture = pool.submit(source.capture, texts, LAYERS)
            time.sleep(0.5)
            verifier.kill("verifier")
            assert not capture.done(), "killed in the middle"
            verifier.start_verifier()
            captured = capture.result(120)
        assert [len(c.final) for c in captured] == [len(text) for text in texts]
        some = slice(1000, 1040)
        check(source, tiny_reference, texts[some])
        for early, late in zip(captured[some], source.capture(texts[some], LAYERS), strict=True):
            torch.testing.assert_close(early.features, late.features, atol=1e-4, rtol=2.0**-7)
    finally:
        source.close()


@pytest.mark.slow
def test_a_synthesis_survives_the_kill_of_either_side(verifier: Cluster, tmp_path: Path) -> None:
    def command(out: Path) -> list[str]:
        return [
            "--verifiers", verifier.verifier, "--out", str(out), "--count", "150",
            "--turns", "2", "--max-user-tokens", "48", "--max-answer-tokens", "48",
            "--max-loop-share", "1",
        ]  # fmt: skip

    def start(out: Path) -> Any:
        log = tmp_path / f"{out.stem}.log"
        return spawn_module("drafter_svc.train.synthesize", *command(out), log=log,
                            env={"OMP_NUM_THREADS": "1"})  # fmt: skip

    def reached(out: Path, index: int) -> Callable[[], bool]:
        meta = Path(f"{out}.meta.json")
        return lambda: meta.exists() and json.loads(meta.read_text())["next"] >= index

    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert start(whole).wait(120) == 0
    process = start(out)
    wait_until(reached(out, 15), "a part")
    process.kill()
    process.wait()
    process = start(out)
    wait_until(reached(out, 60), "another part")
    verifier.kill("verifier")
    verifier.start_verifier()
    assert process.wait(120) == 0
    assert out.read_text() == whole.read_text()
    assert "conversations kept" in (tmp_path / "out.log").read_text()
