"""A screen against the tiny Llama: lockstep changes nothing, and nothing is made twice."""

import json
import random
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from drafter_svc.train.data.documents import Document
from drafter_svc.train.run.held_out import Measurement
from drafter_svc.train.run.run_folder import Position
from drafter_svc.train.run.setup import Corpus
from drafter_svc.train.run.trainer import Interrupted
from drafter_svc.train.settings import TrainSettings
from drafter_svc.train.sweep.__main__ import Sweep, main
from drafter_svc.train.sweep.arms import parse_arms
from drafter_svc.train.sweep.results import Results
from drafter_svc.train.sweep.shared_target import SharedTargetSweep, SweepContext
from drafter_svc.train.target.local_source import LocalSource
from drafter_svc.train.target.target import Target, load_target

ARMS = ["base", "adamw: optimizer=adamw", "mtp: mtp_head=true, fc_norm=false, teach_prompts=false"]


class CountingSource(LocalSource):
    """The target in this process; counts its documents."""

    documents = 0

    def capture(self, documents: Any, aux_layers: tuple[int, ...]) -> Any:
        self.documents += len(documents)
        return super().capture(documents, aux_layers)


@pytest.fixture(scope="module")
def target(tiny_llama: Path) -> Target:
    return load_target(str(tiny_llama))


@pytest.fixture
def school(target: Target) -> SweepContext:
    draw = random.Random(0)
    documents = [
        Document(draw.choices(range(5, 60), k=20), [False] * 4 + [True] * 16) for _ in range(26)
    ]
    source = CountingSource(target)
    return SweepContext(target, source, Corpus(documents[:20], documents[20:], "key"), tokens=280)


@pytest.fixture
def base(tmp_path: Path) -> TrainSettings:
    return TrainSettings(
        target="tiny",
        data=["none"],
        out=str(tmp_path),
        batch_tokens=80,
        chain_steps=[1, 2],
        draft_vocab=64,
    )


def weights(group: SharedTargetSweep) -> list[torch.Tensor]:
    return [w for pupil in group.pupils for w in pupil.learner.drafter.parameters()]


def test_arms_that_share_lessons_learn_what_they_learn_alone(
    school: SweepContext, base: TrainSettings
) -> None:
    arms = parse_arms(ARMS, base)
    together = SharedTargetSweep(arms, 1, base, school)
    assert len(list(together.train(lambda _: None))) == 4
    assert school.source.documents == 16  # type: ignore[attr-defined]
    assert together.position.tokens == 320
    alone = [SharedTargetSweep([arm], 1, base, school) for arm in arms]
    for group in alone:
        list(group.train(lambda _: None))
    apart = [weight for group in alone for weight in weights(group)]
    for one, two in zip(weights(together), apart, strict=True):
        assert torch.equal(one, two)


def test_seeds_differ_in_weights_and_order(school: SweepContext, base: TrainSettings) -> None:
    arms = parse_arms(["base"], base)
    one, two = (SharedTargetSweep(arms, seed, base, school) for seed in (0, 1))
    assert not torch.equal(
        one.pupils[0].learner.drafter.midlayer.mlp.up_proj.weight,
        two.pupils[0].learner.drafter.midlayer.mlp.up_proj.weight,
    )


def test_a_screen_goes_on_where_it_was_stopped_and_makes_nothing_twice(
    school: SweepContext, base: TrainSettings, tmp_path: Path
) -> None:
    arms = parse_arms(ARMS[:2], base)
    whole = Results(replace(base, out=str(tmp_path / "whole")), school)
    Sweep(base, arms, school, whole).run(1)

    # Three updates, then the rest of them and one arm's measurement, then the other arm's.
    for stop in (3, 2):
        answers = iter([False] * (stop - 1) + [True])
        results = Results(base, school)
        with pytest.raises(Interrupted, match="goes on from there"):
            Sweep(base, arms, school, results, partial(next, answers)).run(1)
    assert len(results.runs) == 1
    results = Results(base, school)
    Sweep(base, arms, school, results).run(1)
    assert results.runs == whole.runs
    assert len(results.runs) == 2
    assert not list(tmp_path.glob("*.pt"))

    before = school.source.documents  # type: ignore[attr-defined]
    again = Results(base, school)
    Sweep(base, arms, school, again).run(1)
    assert school.source.documents == before  # type: ignore[attr-defined]


def test_the_table_has_means_and_half_of_the_range(
    school: SweepContext, base: TrainSettings, tmp_path: Path
) -> None:
    (arm,) = parse_arms(["deep: layers=2"], base)
    results = Results(base, school)
    for seed, top1 in enumerate((0.5, 0.52)):
        measured = Measurement([top1, 0.25], [0.4, 0.4], 0.8, 1.5 + seed, 77)
        results.add(f"run {seed}", arm, seed, Position(3, 300), measured)
    text = Results(base, school).write_table({"deep": ["run 0", "run 1"]})
    row = "| deep | layers=2 | 0.510 ±0.010 | 0.250 ±0.000 | 2.000 ±0.500 |"
    assert text.splitlines()[2] == row
    assert text in (tmp_path / "table.md").read_text()
    saved = json.loads((tmp_path / "results.json").read_text())["runs"]["run 1"]
    assert saved["settings"]["layers"] == 2
    assert saved["settings"]["seed"] == 1
    assert saved["run"]["target_fingerprint"] == school.target.fingerprint


def test_the_command_prints_the_table_and_refuses_in_one_sentence(
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "data.jsonl"
    words = random.Random(0)
    texts = (" ".join(words.choices(["abc", "xyz", "mno"], k=12)) for _ in range(12))
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    places = ["--target", str(tiny_llama), "--data", str(data), "--out", str(tmp_path / "out")]
    sizes = ["--draft_vocab", "64", "--held_out", "2", "--chain_steps", "1", "--batch_tokens", "99"]

    def run(*more: str) -> int:
        monkeypatch.setattr(sys, "argv", ["screen", *places, *sizes, *more])
        return main()

    assert run("--tokens", "150", "--seeds", "1", "--arms", "base", "fixed: loss=lk") == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in shown] == ["arm", "---", "base", "fixed"]
    for more, complaint in (
        (["--arms", "a: layer=2"], "no setting 'layer'"),
        (["--arms", "a", "--tokens", "99999"], "tokens is 99999, data has"),
        (["--arms", "a", "--seeds", "0"], "seeds must be at least 1"),
    ):
        assert run(*more) == 2
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("drafter_svc.train.sweep: ")
        assert complaint in last
