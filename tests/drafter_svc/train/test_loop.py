"""Whole training runs against the tiny Llama."""

import csv
import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from drafter_svc.checkpoint import load_checkpoint
from drafter_svc.train.data import read_conversations
from drafter_svc.train.loop import Trainer
from drafter_svc.train.settings import TrainSettings
from drafter_svc.train.target import Target, load_target


@pytest.fixture(scope="module")
def target(tiny_llama: Path) -> Target:
    return load_target(str(tiny_llama))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers of repeated words, which a drafter can learn within seconds."""
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    words = random.Random(0)
    with path.open("w") as file:
        for _ in range(60):
            answer = " ".join(words.choices(["abc", "xyz", "mno"], k=8))
            messages = [
                {"role": "user", "content": "go"},
                {"role": "assistant", "content": answer},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


@pytest.fixture
def settings(data: Path, tmp_path: Path) -> TrainSettings:
    return TrainSettings(
        target="tiny",
        data=str(data),
        out=str(tmp_path / "run"),
        epochs=6,
        learning_rate=5e-3,
        batch_tokens=400,
        chain_steps=2,
        draft_vocab=64,
        held_out=6,
        report_minutes=60,
    )


@pytest.fixture
def make(target: Target) -> Callable[[TrainSettings], Trainer]:
    def build(settings: TrainSettings) -> Trainer:
        conversations = read_conversations(settings.data, target.tokenizer, 200)
        return Trainer(settings, target, conversations)

    return build


Make = Callable[[TrainSettings], Trainer]


def test_a_run_learns_and_leaves_a_checkpoint_for_its_target(
    settings: TrainSettings, make: Make, target: Target
) -> None:
    trainer = make(settings)
    untrained = trainer._report([])
    trained = trainer.run()
    assert trained.top1[0] > untrained.top1[0] + 0.1
    assert trained.overlap[0] > untrained.overlap[0] + 0.1

    loaded = load_checkpoint(Path(settings.out) / "checkpoint", dtype=torch.bfloat16)
    assert loaded.config.target_fingerprint == target.fingerprint
    assert loaded.config.draft_temperature == trained.draft_temperature
    assert loaded.config.training["answer_tokens"] == trainer.position.tokens
    for name, tensor in trainer.drafter.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], tensor), name

    with (Path(settings.out) / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [0, trainer.position.steps]
    assert float(rows[1]["top1_0"]) == pytest.approx(trained.top1[0], abs=1e-4)


def test_a_resumed_run_takes_the_same_steps(
    settings: TrainSettings, make: Make, tmp_path: Path
) -> None:
    whole = make(settings)
    whole.run()

    resumed_settings = dataclasses.replace(settings, out=str(tmp_path / "resumed"))
    stopped = make(resumed_settings)
    lessons = stopped._lessons()
    for _ in range(5):
        losses = stopped._step(next(lessons))
    del lessons
    stopped._report(losses)
    resumed = make(resumed_settings)
    assert resumed.position == stopped.position
    resumed.run()

    assert resumed.position.steps == whole.position.steps
    for (name, a), b in zip(
        whole.drafter.named_parameters(), resumed.drafter.parameters(), strict=True
    ):
        assert torch.equal(a, b), name


def test_a_run_does_not_go_on_with_other_data(settings: TrainSettings, make: Make) -> None:
    make(settings)._report([])
    with pytest.raises(ValueError, match="another seed, chain_steps"):
        make(dataclasses.replace(settings, seed=1, chain_steps=3))


def test_time_ends_a_run_and_its_schedule(settings: TrainSettings, make: Make) -> None:
    trainer = make(dataclasses.replace(settings, epochs=1000, minutes=1))
    trainer.position.seconds = 30.0
    assert trainer.progress == pytest.approx(0.5)
    trainer.position.seconds = 59.9
    trainer.run()
    assert trainer.progress >= 1
    assert trainer.position.tokens < trainer.total / 10


def test_too_little_data_is_refused(settings: TrainSettings, make: Make) -> None:
    with pytest.raises(ValueError, match="held_out is 60"):
        make(dataclasses.replace(settings, held_out=60))


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 0), ("stride", 0), ("minutes", -1), ("warm_up", 1.0), ("held_out", 0)],
)
def test_impossible_settings_name_the_field(
    settings: TrainSettings, field: str, value: float
) -> None:
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(settings, **{field: value})  # type: ignore[arg-type]
