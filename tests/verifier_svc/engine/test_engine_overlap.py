"""The real engine with two cohorts: the same text, and drafts made while others are verified."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from specwire.messages import AppendEntries
from tests.support.engine_fixtures import LENGTH, VOCAB, Texts, check_usage, generate_all, prompt_of
from tests.support.running_engine import RunningEngine, greedy_texts, target_of
from tests.support.scripted_drafter import (
    FlakyDrafter,
    ScriptedDrafter,
    good,
    random_guesses,
    welcome_for,
)
from verifier_svc.draft_length.two_batch_overlap import TwoBatchOverlap
from verifier_svc.scheduling.scheduler import ScheduledRows


@pytest.fixture
def shuffled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any of the decoding sequences rest, and never all of them."""
    chance = random.Random(0)

    def rest(self: TwoBatchOverlap, decoding: Sequence[int], gain: float) -> frozenset[int]:
        split = chance.random() < 0.8
        return frozenset(chance.sample(decoding, len(decoding) // 2) if split else ())

    monkeypatch.setattr(TwoBatchOverlap, "rest", rest)


@pytest.mark.usefixtures("shuffled")
@pytest.mark.parametrize("length", ["0", "3", "auto"])
@pytest.mark.parametrize("kind", ["prompt", "late", "flaky"])
def test_whoever_rests_the_text_is_the_same(
    tiny_llama: Path, texts: Texts, kind: str, length: str
) -> None:
    welcome = welcome_for(target_of(tiny_llama), device="elsewhere")
    port = (
        FlakyDrafter(welcome, good(texts, 0.1))
        if kind == "flaky"
        else ScriptedDrafter(welcome, good(texts, 0.2), delay=0.01 if kind == "late" else 0.001)
    )
    flags = ("--draft-length", length, "--draft-deadline-ms", "8", "--token-budget", "64")
    with RunningEngine(tiny_llama, port, *flags) as engine:
        results = generate_all(engine)
    port.settle()
    for result, text in zip(results, texts, strict=True):
        assert result.text == text
        check_usage(result)
    assert not port.broken_promises
    if kind == "prompt" and length == "3":
        assert all(result.finished.usage.accepted_draft_tokens > 0 for result in results)


@pytest.mark.usefixtures("shuffled")
def test_who_rests_has_been_asked_for_and_is_not_asked_for_again(
    tiny_llama: Path, texts: Texts, drafter: Callable[..., ScriptedDrafter]
) -> None:
    port = drafter(good(texts))
    asked: list[tuple[int, int]] = []
    send = port.round

    def recorded(
        link: int,
        extends: Sequence[AppendEntries],
        features: Sequence[torch.Tensor],
        closes: Sequence[int],
    ) -> None:
        asked.extend((extend.seq, extend.stop) for extend in extends)
        send(link, extends, features, closes)

    port.round = recorded  # type: ignore[method-assign]
    with RunningEngine(tiny_llama, port, "--draft-length", "3") as engine:
        results = generate_all(engine)
    assert len(asked) == len(set(asked)), "one draft for each state of a sequence"
    for result in results:
        usage = result.finished.usage
        assert usage.rejected_draft_tokens == 0
        assert usage.rounds <= LENGTH // 4 + 2, "no turn went without its draft"


@pytest.mark.usefixtures("shuffled")
def test_timings_add_up_for_who_rests(
    tiny_llama: Path, texts: Texts, drafter: Callable[..., ScriptedDrafter]
) -> None:
    port = drafter(good(texts, wrong=0.5), delay=0.004)
    with RunningEngine(tiny_llama, port, "--draft-length", "2") as engine:
        started = time.perf_counter()
        results = generate_all(engine)
        wall = time.perf_counter() - started
    port.settle()
    for result in results:
        timings = result.finished.timings
        assert min(timings.target, timings.wire, timings.draw) > 0
        assert timings.host < 0.3 * timings.accounted
        assert timings.queue + timings.prefill + timings.accounted + timings.host <= wall


class PacedTarget:
    """Pads the steps of a target to 0.8 ms for each row, asleep, and counts who runs."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run
        # Of each step that only decodes: when it began and ended, and how many sequences ran.
        self.steps: list[tuple[float, float, int]] = []

    def __call__(self, works: Sequence[ScheduledRows], cache: Any) -> Any:
        began = time.perf_counter()
        end = began + 0.0008 * sum(len(work.tokens) for work in works)
        hidden = self._run(works, cache)
        time.sleep(max(0.0, end - time.perf_counter()))
        if not any(work.prompt for work in works):
            self.steps.append((began, time.perf_counter(), len(works)))
        return hidden

    @property
    def halves(self) -> int:
        """Steps of a half of eight."""
        return sum(count == 4 for _, _, count in self.steps)


@pytest.fixture
def paced(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> PacedTarget:
    target = target_of(tiny_llama)
    paced = PacedTarget(target.run)
    monkeypatch.setattr(target, "run", paced)
    return paced


@pytest.fixture
def rested(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each choice, whether anybody was to rest."""
    rested: list[bool] = []
    rest = TwoBatchOverlap.rest

    def watched(self: TwoBatchOverlap, decoding: Sequence[int], gain: float) -> frozenset[int]:
        rests = rest(self, decoding, gain)
        rested.append(bool(rests))
        return rests

    monkeypatch.setattr(TwoBatchOverlap, "rest", watched)
    return rested


TOKENS = 30
EIGHT = [prompt_of(10, seed) for seed in range(8)]


@pytest.fixture(scope="module")
def eight(tiny_llama: Path) -> Texts:
    return greedy_texts(tiny_llama, EIGHT, TOKENS)


class Busy(ScriptedDrafter):
    """Remembers when it made drafts for a half of eight."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.spans: list[tuple[float, float]] = []

    def round(
        self,
        link: int,
        extends: Sequence[AppendEntries],
        features: Sequence[torch.Tensor],
        closes: Sequence[int],
    ) -> None:
        if len(extends) == 4:
            now = time.perf_counter()
            self.spans.append((now, now + self.delay))
        super().round(link, extends, features, closes)


def submit_eight(engine: RunningEngine) -> list[int]:
    """All at once, after one alone, which shows what rows cost."""
    engine.generate(EIGHT[0], max_tokens=TOKENS, ignore_eos=True)
    return [engine.submit(prompt, max_tokens=TOKENS, ignore_eos=True) for prompt in EIGHT]


def busy(folder: Path, device: str, **options: Any) -> Busy:
    """A drafter that is always wrong and takes about half a step of eight sequences."""
    welcome = welcome_for(target_of(folder), device=device)
    return Busy(welcome, random_guesses(VOCAB), delay=0.012, **options)


def test_drafts_of_a_drafter_with_its_own_device_are_made_beside_steps(
    tiny_llama: Path, eight: Texts, paced: PacedTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = busy(tiny_llama, "elsewhere")
    told: list[float] = []
    with RunningEngine(tiny_llama, port, "--draft-length", "3") as engine:
        monkeypatch.setattr(engine.engine._metrics.cohorts, "set", told.append)
        results = engine.finish(*submit_eight(engine))
    port.settle()
    assert [result.text for result in results] == eight
    assert paced.halves > TOKENS
    assert set(told) == {1, 2}
    beside = sum(
        max(0.0, min(done, end) - max(asked, began))
        for asked, done in port.spans
        for began, end, _ in paced.steps
    )
    assert beside > 0.6 * sum(done - asked for asked, done in port.spans)
    for result in results:
        check_usage(result)
        assert result.finished.timings.host < 0.3 * result.finished.timings.accounted


@pytest.mark.parametrize("where", ["unknown", "shared"])
def test_a_drafter_that_shares_the_targets_device_gets_one_cohort(
    tiny_llama: Path, eight: Texts, paced: PacedTarget, rested: list[bool], where: str
) -> None:
    (device,) = target_of(tiny_llama).devices
    port = busy(tiny_llama, device if where == "shared" else "")
    with RunningEngine(tiny_llama, port, "--draft-length", "3") as engine:
        results = engine.finish(*submit_eight(engine))
    port.settle()
    assert [result.text for result in results] == eight
    assert not any(rested)
    assert sum(count == 8 for _, _, count in paced.steps) > TOKENS // 2


def test_a_drafter_that_dies_in_the_middle_of_two_cohorts(
    tiny_llama: Path, eight: Texts, paced: PacedTarget
) -> None:
    port = busy(tiny_llama, "elsewhere")
    with RunningEngine(tiny_llama, port, "--draft-length", "3") as engine:
        seqs = submit_eight(engine)
        while paced.halves < 8:
            engine.step()
        port.unlink()
        for _ in range(4):
            engine.step()
        halves = paced.halves
        for _ in range(4):
            engine.step()
        assert paced.halves == halves, "plain decoding is one cohort"
        port.welcome = replace(port.welcome, checkpoint_hash="another")
        port.link()
        results = engine.finish(*seqs)
    port.settle()
    assert [result.text for result in results] == eight
    assert paced.halves > halves, "two cohorts return with the drafter"
    assert not port.broken_promises


def test_sequences_that_come_and_go_while_two_cohorts_take_turns(
    tiny_llama: Path, eight: Texts, paced: PacedTarget
) -> None:
    port = busy(tiny_llama, "elsewhere")
    with RunningEngine(tiny_llama, port, "--draft-length", "2") as engine:
        engine.generate(EIGHT[0], max_tokens=TOKENS, ignore_eos=True)
        seqs = [
            engine.submit(prompt, max_tokens=TOKENS - 3 * i, ignore_eos=True)
            for i, prompt in enumerate(EIGHT)
        ]
        while paced.halves < 4:
            engine.step()
        engine.cancel(seqs[1])
        late = engine.submit(EIGHT[1], max_tokens=TOKENS, ignore_eos=True)
        results = engine.finish(seqs[0], late, *seqs[2:])
    port.settle()
    for i, result in enumerate(results):
        tokens = TOKENS - 3 * i if i != 1 else TOKENS
        assert result.text == eight[i][: len(EIGHT[i]) + tokens]
        check_usage(result)
    assert not port.broken_promises
