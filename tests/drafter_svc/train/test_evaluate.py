"""The evaluation command on the tiny Llama."""

import json
import sys
from pathlib import Path

import pytest
import torch

from drafter_svc.formats.checkpoint import save_checkpoint
from drafter_svc.train.data.greedy_answers import first_turn, greedy_answers, read_texts
from drafter_svc.train.evaluate import main
from drafter_svc.train.run.init_weights import drafter_config, initial_drafter
from drafter_svc.train.target.target import Target, load_target
from tests.support.tiny_drafter import tiny_config, tiny_drafter
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
    read = [first_turn(json.loads(line), target) for line in prompts.read_text().splitlines()]
    assert [target.tokenizer.decode(ids) for ids in read[:2]] == [
        "<|im_start|>user hello<|im_end|><|im_start|>assistant ",
        "<|im_start|>user a longer question<|im_end|><|im_start|>assistant ",
    ]


def test_batched_answers_are_those_of_single_prompts(target: Target, prompts: Path) -> None:
    asked = [first_turn(json.loads(line), target) for line in prompts.read_text().splitlines()]
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


def test_conversations_are_replayed_up_to_the_end_of_their_first_answer(
    target: Target, tmp_path: Path
) -> None:
    turns = [("user", "hi"), ("assistant", "hello you"), ("user", "b"), ("assistant", "c")]
    record = {"messages": [{"role": role, "content": content} for role, content in turns]}
    path = tmp_path / "held_out.jsonl"
    empty = {"messages": [{"role": "user", "content": "unanswered"}]}
    path.write_text(json.dumps(record) + "\n" + json.dumps(empty) + "\n")
    ((ids, prompt),) = read_texts(str(path), target, count=9, new_tokens=50, batch=1)
    assert target.tokenizer.decode(ids[prompt:]) == "hello you<|im_end|>"
    assert target.tokenizer.decode(ids[:prompt]).endswith("<|im_start|>assistant ")
    ((ids, prompt),) = read_texts(str(path), target, count=9, new_tokens=3, batch=1)
    assert target.tokenizer.decode(ids[prompt:]) == "hel"


def run(
    monkeypatch: pytest.MonkeyPatch, target: Path, checkpoint: Path, prompts: Path, *more: str
) -> int:
    arguments = ["--target", target, "--checkpoint", checkpoint, "--prompts", prompts]
    sizes = ["--new_tokens", "24", "--draft_length", "2"]
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments), *sizes, *more])
    return main()


def test_the_command_prints_one_line_per_file(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_llama: Path,
    checkpoint: Path,
    prompts: Path,
) -> None:
    assert run(monkeypatch, tiny_llama, checkpoint, prompts, "--round_costs", "9", "1", "0.5") == 0
    out, table = capsys.readouterr()
    limits, line = map(json.loads, out.splitlines())
    assert limits["prompts"] == line["prompts"] == "asked"
    assert 0 < limits["target_top_probability"] < 1
    assert len(limits["speed_up_by_draft_length"]) == 8
    assert limits["acceptance_length_by_draft_length"][1] == line["acceptance_length"]
    assert f"best draft length: {limits['best_draft_length']}" in table
    assert line["draft_length"] == 2
    assert line["rounds"] > 0
    assert line["acceptance_length"] == pytest.approx(1 + sum(line["per_position"]), abs=2e-3)


def test_a_deeper_drafter_of_another_width_is_evaluated(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_llama: Path,
    target: Target,
    prompts: Path,
    tmp_path: Path,
) -> None:
    config = tiny_config(
        vocab_size=97, target_hidden_size=32, num_hidden_layers=2, own_embeddings=True,
        target_fingerprint=target.fingerprint,
    )  # fmt: skip
    save_checkpoint(tmp_path / "deep", tiny_drafter(config), torch.arange(40) + 50)
    assert run(monkeypatch, tiny_llama, tmp_path / "deep", prompts) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rounds"] > 0


def test_lookup_is_compared_with_the_chain(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_llama: Path,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / "copied.jsonl"
    turns = [("user", "repeat"), ("assistant", "one fine day " * 5)]
    record = {"messages": [{"role": role, "content": content} for role, content in turns]}
    path.write_text(json.dumps(record) + "\n")
    more = ("--lookup", "2", "4", "--lookup_length", "6", "--new_tokens", "60")
    assert run(monkeypatch, tiny_llama, checkpoint, path, *more) == 0
    out, table = capsys.readouterr()
    lines = {line["drafts"]: line for line in map(json.loads, out.splitlines()[1:])}
    names = ["lookup 2", "chain + lookup 2", "lookup 4", "chain + lookup 4"]
    assert list(lines) == ["chain", *names]
    assert lines["chain"]["lookup_rounds"] == 0
    for name in names:
        assert lines[name]["acceptance_length"] > lines["chain"]["acceptance_length"]
        assert lines[name]["lookup_acceptance_length"] > 5
        assert f"  {name}  " in table
    # A shorter threshold finds the repetition earlier.
    assert lines["lookup 2"]["rounds"] <= lines["lookup 4"]["rounds"]
    assert "best threshold: 2" in table


def test_bad_records_and_settings_are_named(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_llama: Path,
    checkpoint: Path,
    prompts: Path,
    tmp_path: Path,
) -> None:
    assert run(monkeypatch, tiny_llama, checkpoint, prompts, "--lookup", "0") == 2
    assert "lookup must be at least 1, got 0" in capsys.readouterr().err
    assert run(monkeypatch, tiny_llama, checkpoint, prompts, "--round_costs", "9", "1") == 2
    assert "round_costs must be three times above 0, got [9.0, 1.0]" in capsys.readouterr().err
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "abc"}\n')
    assert run(monkeypatch, tiny_llama, checkpoint, path) == 2
    assert 'text.jsonl: every record must have "turns" or "messages"' in capsys.readouterr().err


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
