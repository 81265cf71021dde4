"""Training on what a real verifier process sends, which dies in the middle."""

import csv
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import Cluster, wait_until
from tests.support.process import spawn_module, stop


@pytest.mark.slow
def test_a_run_outlives_its_verifier_and_learns_what_a_local_one_does(
    verifier: Cluster, tiny_llama: Path, tmp_path: Path
) -> None:
    words, data = random.Random(0), tmp_path / "data.jsonl"
    texts = (" ".join(words.choices(["abc", "xyz", "mno"], k=20)) for _ in range(400))
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def command(out: str, *more: str) -> list[str]:
        return [
            "--target", str(tiny_llama), "--data", str(data), "--out", str(tmp_path / out),
            "--batch_tokens", "400", "--draft_vocab", "64", "--held_out", "8", *more,
        ]  # fmt: skip

    def top1(out: str) -> float:
        with (tmp_path / out / "log.csv").open() as file:
            return float(list(csv.DictReader(file))[-1]["top1_0"])

    log = tmp_path / "train.log"
    remote = ["--verifiers", verifier.verifier]
    process = spawn_module("drafter_svc.train", *command("remote", *remote), log=log)
    try:
        wait_until(lambda: b"loss" in log.read_bytes(), "the first step")
        verifier.kill("verifier")
        assert process.poll() is None, "killed in the middle"
        verifier.start_verifier()
        assert process.wait(120) == 0, log.read_text()
    finally:
        stop(process)
    local = [sys.executable, "-m", "drafter_svc.train", *command("local")]
    subprocess.run(local, check=True, timeout=120)
    tokens = [
        json.loads((tmp_path / out / "checkpoint" / "config.json").read_text())["holdcourse"]
        for out in ("remote", "local")
    ]
    assert tokens[0]["training"]["tokens"] == tokens[1]["training"]["tokens"]
    assert top1("remote") == pytest.approx(top1("local"), abs=0.1)
