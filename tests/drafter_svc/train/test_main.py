"""The command: processes that train together, a run that is interrupted, unusable input."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from drafter_svc.formats.checkpoint import load_checkpoint
from drafter_svc.train.__main__ import main
from tests.support.process import spawn, stop


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    words = random.Random(0)
    texts = (" ".join(words.choices(["abc", "xyz", "mno"], k=12)) for _ in range(40))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def arguments(target: Path, data: Path, out: Path, *more: str) -> list[str]:
    places = ["--target", str(target), "--data", str(data), "--out", str(out)]
    sizes = ["--batch_tokens", "200", "--draft_vocab", "64", "--held_out", "4"]
    return [*places, *sizes, "--chain_steps", "1", "2", *more]


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["train", *words])
    return main()


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(
    tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    """Each update has the same two batches; AdamW, whose arithmetic is elementwise."""
    more = ["--accumulate", "2", "--optimizer", "adamw", "--epochs", "2"]
    alone = [sys.executable, "-m", "drafter_svc.train"]
    both = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    both += ["-m", "drafter_svc.train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, command in (("alone", alone), ("both", both)):
        words = arguments(tiny_llama, data, tmp_path / name, *more)
        subprocess.run([*command, *words], check=True, env=environment, timeout=240)
    one, two = (
        load_checkpoint(tmp_path / name / "checkpoint", dtype=torch.bfloat16)
        for name in ("alone", "both")
    )
    assert one.config.training["tokens"] == two.config.training["tokens"] > 0
    for name, tensor in one.module.state_dict().items():
        assert torch.equal(tensor, two.module.state_dict()[name]), name


@pytest.mark.slow
def test_an_interrupted_run_saves_and_goes_on(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    words = arguments(tiny_llama, data, tmp_path / "run", "--epochs", "1000000")
    log = tmp_path / "log"
    process = spawn([sys.executable, "-m", "drafter_svc.train", *words], log)
    try:
        end = time.monotonic() + 60
        while b"loss" not in log.read_bytes():
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    finally:
        stop(process)
    assert "the same command goes on from there" in log.read_text()
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert state["position"]["steps"] > 0
    load_checkpoint(tmp_path / "run" / "checkpoint", dtype=torch.bfloat16)


def test_unusable_input_is_one_sentence_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_llama: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": [{"role": "user"')
    for words, complaint in (
        (arguments(tiny_llama, tmp_path / "none", tmp_path / "out"), "No such file"),
        (arguments(tiny_llama, bad, tmp_path / "out"), "bad.jsonl:1 is neither"),
        (arguments(tiny_llama, data, tmp_path / "out", "--stride", "0"), "stride must be"),
        (arguments(tiny_llama, data, tmp_path / "out", "--init", str(tmp_path)), "config.json"),
        (arguments(tiny_llama, data, tmp_path / "out", "--aux_layers", "1", "5"), "states 0 to 4"),
        (
            arguments(tiny_llama, data, tmp_path / "out", "--mtp_head", "--aux_layers", "1", "4"),
            "an MTP head reads one captured state",
        ),
    ):
        assert run(monkeypatch, *words) == 2
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("drafter_svc.train: ")
        assert complaint in last
