"""The real engine with two cohorts: the same text, and drafts made while others are verified."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from specwire.draft import Extend
from tests.support.running_engine import RunningEngine, greedy_texts, target_of
from tests.support.scripted_drafter import (
    FlakyDrafter,
    ScriptedDrafter,
    good,
    random_guesses,
    welcome_for,
)
from tests.verifier_svc.engine_parts import (
    LENGTH,
    VOCAB,
    Texts,
    check_usage,
    generate_all,
    prompt_of,
)
from verifier_svc.cohorts import Cohorts
from verifier_svc.scheduler import Work


@pytest.fixture
def shuffled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any of the decoding sequences rest, and never all of them."""
    chance = random.Random(0)

    def rest(self: Cohorts, decoding: Sequence[int]) -> frozenset[int]:
        split = chance.random() < 0.8
        return frozenset(chance.sample(decoding, len(decoding) // 2) if split else ())

    monkeypatch.setattr(Cohorts, "rest", rest)


@pytest.mark.usefixtures("shuffled")
@pytest.mark.parametrize("length", ["3", "auto"])
@pytest.mark.parametrize("kind", ["prompt", "late", "flaky"])
def test_whoever_rests_the_text_is_the_same(
    tiny_llama: Path, texts: Texts, kind: str, length: str
) -> None:
    welcome = welcome_for(target_of(tiny_llama))
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
        extends: Sequence[Extend],
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
    """Pads the steps of a target to so many seconds for each row, asleep."""

    def __init__(self, run: Callable[..., Any], row: float) -> None:
        self._run, self._row = run, row
        # Of each step: when it ended, and how many rows it had.
        self.steps: list[tuple[float, int]] = []

    def __call__(self, works: Sequence[Work], cache: Any) -> Any:
        rows = sum(len(work.tokens) for work in works)
        end = time.perf_counter() + self._row * rows
        hidden = self._run(works, cache)
        time.sleep(max(0.0, end - time.perf_counter()))
        self.steps.append((time.perf_counter(), rows))
        return hidden

    def seconds(self, rows: int) -> float:
        """The usual time between steps of so many rows."""
        pairs = pairwise(self.steps)
        return median(after - before for (before, r), (after, s) in pairs if r == s == rows)


def decode(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, delay: float, tokens: int, interval: int
) -> PacedTarget:
    """Eight sequences, four rows each, whose drafts are all wrong; checks their texts."""
    monkeypatch.setattr("verifier_svc.overlap._INTERVALS", (interval, interval))
    target = target_of(folder)
    paced = PacedTarget(target.run, 0.0008)
    monkeypatch.setattr(target, "run", paced)
    prompts = [prompt_of(10, seed) for seed in range(8)]
    port = ScriptedDrafter(welcome_for(target), random_guesses(VOCAB), delay=delay)
    with RunningEngine(folder, port, "--draft-length", "3") as engine:
        seqs = [engine.submit(p, max_tokens=tokens, ignore_eos=True) for p in prompts]
        results = engine.finish(*seqs)
    port.settle()
    assert [result.text for result in results] == greedy_texts(folder, prompts, tokens)
    return paced


def test_drafts_of_a_drafter_with_its_own_device_are_made_while_others_are_verified(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paced = decode(tiny_llama, monkeypatch, delay=0.015, tokens=45, interval=12)
    # All at once: 26 + 15 ms. Two cohorts: 13 + 15 ms, were it not for what runs beside.
    assert paced.seconds(rows=32) > 1.15 * 2 * paced.seconds(rows=16)
    assert sum(rows == 16 for _, rows in paced.steps) > 20


def test_all_verify_together_where_the_drafter_is_fast(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests: list[frozenset[int]] = []
    rest = Cohorts.rest

    def watched(self: Cohorts, decoding: Sequence[int]) -> frozenset[int]:
        rests.append(rest(self, decoding))
        return rests[-1]

    monkeypatch.setattr(Cohorts, "rest", watched)
    decode(tiny_llama, monkeypatch, delay=0.0, tokens=16, interval=4)
    assert not any(rests)
