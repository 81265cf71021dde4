"""The evaluation command on the tiny Llama."""

import json
import sys
from pathlib import Path

import pytest
import torch

from drafter_svc.checkpoint import save_checkpoint
from drafter_svc.train.evaluate import greedy_answers, main, read_prompts
from drafter_svc.train.initial import drafter_config, initial_drafter
from drafter_svc.train.target import Target, load_target
from tests.support.tiny_llama import write_tiny_llama


@pytest.fixture(scope="module")
def target(tiny_llama: Path) -> Target:
    return load_target(str(tiny_llama))


@pytest.fixture
def checkpoint(target: Target, tmp_path: Path) -> Path:
    draft_ids = torch.arange(90)
    drafter = initial_drafter(drafter_config(target, 90), target, draft_ids, 0)
    save_checkpoint(tmp_path / "checkpoint", drafter, draft_ids)
    return tmp_path / "checkpoint"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "asked.jsonl"
    turns = [["hello"], ["a longer question", "never asked"], ["abc"]]
    path.write_text("".join(json.dumps({"turns": turn}) + "\n" for turn in turns))
    return path


def test_prompts_are_first_turns_in_the_template(target: Target, prompts: Path) -> None:
    read = read_prompts(str(prompts), target, 2)
    assert [target.tokenizer.decode(ids) for ids in read] == [
        "<|im_start|>user hello<|im_end|><|im_start|>assistant ",
        "<|im_start|>user a longer question<|im_end|><|im_start|>assistant ",
    ]


def test_batched_answers_are_those_of_single_prompts(target: Target, prompts: Path) -> None:
    asked = read_prompts(str(prompts), target, 3)
    fp32 = Target(target.model.float(), target.tokenizer, target.name, target.fingerprint)
    try:
        batched = list(greedy_answers(fp32, asked, 12, batch=3))
        single = list(greedy_answers(fp32, asked, 12, batch=1))
    finally:
        target.model.bfloat16()
    assert batched == single
    for ids, prompt in batched:
        assert ids[:prompt] in asked
        assert len(ids) == prompt + 12 or ids[-1] == target.tokenizer.eos_token_id


def run(monkeypatch: pytest.MonkeyPatch, target: Path, checkpoint: Path, prompts: Path) -> int:
    arguments = ["--target", target, "--checkpoint", checkpoint, "--prompts", prompts]
    sizes = ["--new_tokens", "24", "--draft_length", "2"]
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments), *sizes])
    return main()


def test_the_command_prints_one_line_per_file(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_llama: Path,
    checkpoint: Path,
    prompts: Path,
) -> None:
    assert run(monkeypatch, tiny_llama, checkpoint, prompts) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["prompts"] == "asked"
    assert line["draft_length"] == 2
    assert line["rounds"] > 0
    assert line["acceptance_length"] == pytest.approx(1 + sum(line["per_position"]), abs=2e-3)


def test_a_checkpoint_of_another_target_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    checkpoint: Path,
    prompts: Path,
) -> None:
    other = write_tiny_llama(tmp_path / "other", seed=1)
    assert run(monkeypatch, other, checkpoint, prompts) == 2
    assert "made for another target" in capsys.readouterr().err
