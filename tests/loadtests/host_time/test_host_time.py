"""The host's time of a round: its accounts, its stand-in for a forward, and a whole run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from loadtests.host_time.bench import FORWARD
from loadtests.host_time.forward import Forward
from loadtests.host_time.parts import REST, Parts
from speckernels import AttentionMetadata, QuerySegment
from tests.support.coordinator_fixtures import decoding
from verifier_svc.kv.kv_cache import KVCache
from verifier_svc.model.decoder.backends import CaptureSpec
from verifier_svc.sampling.verification import verify


def work(seconds: float) -> None:
    """Keep the thread busy."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


class Worker:
    """Does one thing inside another."""

    def outer(self) -> None:
        work(0.02)
        self.inner()
        time.sleep(0.05)

    def inner(self) -> None:
        work(0.01)


def test_parts_leave_out_what_is_inside_them_and_waits() -> None:
    worker, parts = Worker(), Parts()
    parts.time(worker, "outer", "one")
    parts.time(worker, "inner", "other")
    parts.cut()
    worker.outer()
    work(0.005)
    spent = parts.cut()
    assert spent == pytest.approx({"one": 0.02, "other": 0.01, REST: 0.005}, rel=0.3)
    with pytest.raises(AttributeError):
        parts.time(worker, "third", "none")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_are_accepted_by_chance(temperature: float) -> None:
    forward = Forward(0.7, 50, 8)
    cache = KVCache(
        blocks=1, layers=1, kv_heads=1, head_dim=4, feature_width=8, dtype=torch.float32,
        device=torch.device("cpu"),
    )  # fmt: skip
    accepted = []
    for seed in range(1000):
        sequence = decoding(5, seed)
        sequence.draft = (7, 7, 7)
        sequence.greedy = not temperature
        rows = torch.tensor([[4, 7, 7, 7], [4, 5, 6, 7], [4, 5, 6, 7]])
        kept = CaptureSpec((0,), cache.features, rows[2])
        hidden = forward.run(rows, AttentionMetadata([QuerySegment(0, 4, 0, 5)]), cache, kept)
        (drawn,) = verify([sequence], *forward.score(hidden, [sequence.greedy] * 4))
        assert drawn is not None
        accepted.append(len(drawn.tokens) - 1)
    shares = [sum(count == n for count in accepted) / 1000 for n in range(4)]
    assert shares == pytest.approx([0.3, 0.21, 0.147, 0.343], abs=0.05)


def test_a_whole_run(tmp_path: Path) -> None:
    output = tmp_path / "host.json"
    given = ["--streams", "2", "--temperature", "0", "--rounds", "20", "--compile", "off"]
    command = [sys.executable, "-m", "loadtests.host_time", *given, "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    document = json.loads(output.read_text())
    assert document["complete"]
    assert len(document["runs"]) == 4
    (level,) = document["summary"]["levels"]
    plain, drafted = level["plain"], level["drafted"]
    assert plain["to_send"] == plain["drafter"] == 0 < plain["verifier"]
    assert 0 < drafted["to_send"] < drafted["verifier"]
    assert drafted["drafter"] > 0
    assert plain["tokens"] == 1 < drafted["tokens"] <= 4
    assert {"send", "score", "receive", "pack"} <= level["drafted_parts"].keys()
    assert FORWARD not in level["drafted_parts"]
    assert "verifier drafts" in done.stdout
