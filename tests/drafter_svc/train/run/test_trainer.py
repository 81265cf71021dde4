"""Whole training runs against the tiny Llama."""

import csv
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from drafter_svc.formats.checkpoint import load_checkpoint, save_checkpoint
from drafter_svc.train.data.documents import read_documents
from drafter_svc.train.run.init_weights import drafter_config, initial_drafter
from drafter_svc.train.run.setup import make_corpus
from drafter_svc.train.run.trainer import Interrupted, Trainer
from drafter_svc.train.settings import TrainSettings
from drafter_svc.train.target.local_source import LocalSource
from drafter_svc.train.target.target import Target, load_target


@pytest.fixture(scope="module")
def target(tiny_llama: Path) -> Target:
    return load_target(str(tiny_llama))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Answers and texts of repeated words, which a drafter can learn within seconds."""
    folder = tmp_path_factory.mktemp("data")
    words = random.Random(0)
    with (folder / "chat.jsonl").open("w") as chat, (folder / "text.jsonl").open("w") as text:
        for _ in range(50):
            answer = " ".join(words.choices(["abc", "xyz", "mno"], k=8))
            messages = [
                {"role": "user", "content": "go"},
                {"role": "assistant", "content": answer},
            ]
            chat.write(json.dumps({"messages": messages}) + "\n")
        for _ in range(10):
            text.write(json.dumps({"text": " ".join(words.choices(["abc", "xyz"], k=9))}) + "\n")
    return [str(folder / "chat.jsonl"), str(folder / "text.jsonl")]


@pytest.fixture
def settings(data: list[str], tmp_path: Path) -> TrainSettings:
    return TrainSettings(
        target="tiny",
        data=data,
        out=str(tmp_path / "run"),
        epochs=6,
        learning_rate=5e-3,
        batch_tokens=400,
        chain_steps=[1, 2],
        draft_vocab=64,
        held_out=6,
        report_minutes=60,
    )


class CountingSource(LocalSource):
    """The target in this process; counts its documents."""

    documents = 0

    def capture(self, documents: Any, aux_layers: tuple[int, ...]) -> Any:
        self.documents += len(documents)
        return super().capture(documents, aux_layers)


Make = Callable[..., Trainer]


@pytest.fixture
def make(target: Target) -> Make:
    def build(settings: TrainSettings, **more: Any) -> Trainer:
        corpus = make_corpus(settings, read_documents(settings.data, target.tokenizer, 200))
        source = more.pop("source", None) or LocalSource(target)
        return Trainer(settings, target, source, corpus, **more)

    return build


def assert_same_weights(one: Trainer, two: Trainer) -> None:
    weights = two.learner.drafter.state_dict()
    for name, tensor in one.learner.drafter.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def test_a_run_learns_and_leaves_a_checkpoint_for_its_target(
    settings: TrainSettings, make: Make, target: Target
) -> None:
    trainer = make(settings)
    untrained = trainer.report([])
    trained = trainer.run()
    assert trained is not None
    assert trained.top1[0] > untrained.top1[0] + 0.1
    assert trained.overlap[0] > untrained.overlap[0] + 0.1

    loaded = load_checkpoint(Path(settings.out) / "checkpoint", dtype=torch.bfloat16)
    assert loaded.config.target_fingerprint == target.fingerprint
    assert loaded.config.draft_temperature == trained.draft_temperature
    assert loaded.config.training["tokens"] == trainer.position.tokens
    for name, tensor in trainer.learner.drafter.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], tensor), name

    with (Path(settings.out) / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [0, trainer.position.steps]
    assert float(rows[1]["top1_0"]) == pytest.approx(trained.top1[0], abs=1e-4)


@pytest.mark.parametrize("cache", [0.0, 1.0, 1e-4])
def test_a_resumed_run_takes_the_same_steps(
    settings: TrainSettings, make: Make, tmp_path: Path, cache: float
) -> None:
    settings = replace(settings, feature_cache_gib=cache, accumulate=2)
    whole = make(settings)
    whole.run()

    resumed_settings = replace(settings, out=str(tmp_path / "resumed"))
    stops = iter([False] * 6 + [True])
    stopped = make(resumed_settings, stopped=lambda: next(stops))
    with pytest.raises(Interrupted, match="goes on from there"):
        stopped.run()
    resumed = make(resumed_settings)
    assert resumed.position == stopped.position
    assert resumed.position.steps == 7
    resumed.run()

    assert resumed.position.steps == whole.position.steps
    assert_same_weights(whole, resumed)


def test_a_cache_spares_the_target_and_changes_last_bits_only(
    settings: TrainSettings, make: Make, target: Target, tmp_path: Path
) -> None:
    """In the first epoch, when all is computed, not even those."""
    runs = []
    for epochs in (1, 3):
        for cache in (0.0, 1.0):
            source = CountingSource(target)
            out = str(tmp_path / f"cache-{cache}-{epochs}")
            run = replace(settings, epochs=epochs, feature_cache_gib=cache, out=out)
            trainer = make(run, source=source)
            trainer.run()
            runs.append((trainer, source.documents))
    (first, _), (first_cached, _), (plain, computed), (cached, kept) = runs
    assert_same_weights(first, first_cached)
    assert kept == 60
    assert computed >= 3 * 54
    for one, two in zip(
        plain.learner.drafter.parameters(), cached.learner.drafter.parameters(), strict=True
    ):
        assert float((one - two).detach().abs().max()) < 0.1


def test_another_run_starts_from_a_checkpoint(
    settings: TrainSettings, make: Make, tmp_path: Path
) -> None:
    first = make(replace(settings, draft_vocab=50))
    first.run()
    later = make(
        replace(settings, init=str(first.folder.checkpoint), out=str(tmp_path / "later"), epochs=1)
    )
    assert later.position.steps == 0
    assert torch.equal(later.learner.draft_ids, first.learner.draft_ids)
    assert_same_weights(first, later)
    before = later.report([])
    after = later.run()
    assert after is not None
    assert after.top1[0] > before.top1[0] - 0.1


def test_a_deeper_drafter_with_embeddings_of_its_own_goes_on_training(
    settings: TrainSettings, make: Make, target: Target, tmp_path: Path
) -> None:
    config = replace(drafter_config(target, 97), num_hidden_layers=2, own_embeddings=True)
    drafter = initial_drafter(config, target, torch.arange(97), 0)
    save_checkpoint(tmp_path / "start", drafter, torch.arange(97))
    start = load_checkpoint(tmp_path / "start", dtype=torch.bfloat16)

    trainer = make(replace(settings, init=str(tmp_path / "start")))
    untrained = trainer.report([])
    same = load_checkpoint(trainer.folder.checkpoint, dtype=torch.bfloat16)
    assert replace(same.config, training={}, draft_temperature=1.0) == start.config
    assert torch.equal(same.d2t, start.d2t)
    weights = same.module.state_dict()
    for name, tensor in start.module.state_dict().items():
        assert torch.equal(weights[name], tensor), name

    trained = trainer.run()
    assert trained is not None
    for step in range(2):
        assert trained.overlap[step] > untrained.overlap[step] + 0.05, trained
    weights = load_checkpoint(trainer.folder.checkpoint, dtype=torch.bfloat16).module.state_dict()
    moved = {n for n, t in start.module.state_dict().items() if not torch.equal(weights[n], t)}
    assert "embed_tokens.weight" not in moved
    assert {"layers.1.mlp.up_proj.weight", "layers.1.self_attn.q_proj.weight"} < moved


def test_a_checkpoint_of_another_target_is_no_start(
    settings: TrainSettings, make: Make, target: Target, tmp_path: Path
) -> None:
    first = make(settings)
    first.report([])
    other = Target(target.model, target.tokenizer, "other", "beef")
    again = replace(settings, init=str(first.folder.checkpoint), out=str(tmp_path / "again"))
    with pytest.raises(ValueError, match="another target"):
        Trainer(again, other, LocalSource(other), first.corpus)


@pytest.mark.parametrize(
    "arms",
    [
        {"norm_output": False, "fc_norm": False},
        {"norm_before_residual": True, "aux_layers": [3]},
        {"norm_before_fc": True, "fc_norm": False, "sliding_window": 4, "layers": 2},
        {"loss": "lk", "step_weights": "fixed", "optimizer": "adamw", "aux_layers": [1, 4]},
        {"teach_prompts": False, "stride": 1, "accumulate": 3},
        {"mtp_head": True},
        {"mtp_head": True, "norm_output": False, "fc_norm": False, "layers": 2, "aux_layers": [3]},
    ],
)
def test_every_arm_trains_and_records_itself(
    settings: TrainSettings, make: Make, arms: dict[str, Any]
) -> None:
    trainer = make(replace(settings, epochs=2, **arms))
    before = trainer.report([])
    after = trainer.run()
    assert after is not None
    assert after.overlap[0] > before.overlap[0]
    config = load_checkpoint(trainer.folder.checkpoint, dtype=torch.bfloat16).config
    for name, value in arms.items():
        if name in ("norm_output", "fc_norm", "norm_before_residual", "norm_before_fc", "mtp_head"):
            assert getattr(config, name) == value
        assert config.training["settings"][name] == value
    assert config.sliding_window == arms.get("sliding_window")
    assert config.num_hidden_layers == arms.get("layers", 1)
    usual = (4,) if "mtp_head" in arms else (1, 2, 3)
    assert config.aux_layers == tuple(arms.get("aux_layers", usual))


class BrokenSource(LocalSource):
    """From the third batch on its features hold NaN."""

    calls = 0

    def capture(self, documents: Any, aux_layers: tuple[int, ...]) -> Any:
        captured = super().capture(documents, aux_layers)
        self.calls += 1
        if self.calls > 2:
            captured[0].features[0, 0] = torch.nan
        return captured


def test_features_that_are_not_finite_end_the_run_with_its_checkpoint_intact(
    settings: TrainSettings, make: Make, target: Target
) -> None:
    make(settings).report([])
    before = (Path(settings.out) / "checkpoint" / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="states are not finite"):
        make(settings, source=BrokenSource(target)).run()
    assert (Path(settings.out) / "checkpoint" / "model.safetensors").read_bytes() == before


def test_a_run_does_not_go_on_with_other_data(settings: TrainSettings, make: Make) -> None:
    make(settings).report([])
    with pytest.raises(ValueError, match="another chain_steps, held_out"):
        make(replace(settings, held_out=5, chain_steps=[3]))
    with pytest.raises(ValueError, match="another target or data"):
        make(replace(settings, data=settings.data[:1]))


def test_time_ends_a_run_and_its_schedule(settings: TrainSettings, make: Make) -> None:
    trainer = make(replace(settings, epochs=1000, minutes=1))
    trainer.position.seconds = 30.0
    assert trainer.progress == pytest.approx(0.5)
    trainer.position.seconds = 59.9
    trainer.run()
    assert trainer.progress >= 1
    assert trainer.position.tokens < trainer.course.total / 10


def test_too_little_data_is_refused(settings: TrainSettings, make: Make) -> None:
    with pytest.raises(ValueError, match="held_out is 60"):
        make(replace(settings, held_out=60))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("stride", 0),
        ("minutes", -1),
        ("warm_up", 1.0),
        ("held_out", 0),
        ("layers", 0),
        ("accumulate", 0),
        ("chain_steps", []),
        ("sliding_window", 2),
        ("data", []),
    ],
)
def test_impossible_settings_name_the_field(
    settings: TrainSettings, field: str, value: float
) -> None:
    with pytest.raises(ValueError, match=field):
        replace(settings, **{field: value})  # type: ignore[arg-type]
