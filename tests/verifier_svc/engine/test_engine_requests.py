"""Requests to the real engine: cancelled, queued, resumed, ended, failed, timed."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.engine_fixtures import LENGTH, PROMPTS, Texts, check_usage, prompt_of
from tests.support.running_engine import RunningEngine, greedy_texts
from tests.support.scripted_drafter import (
    ScriptedDrafter,
    good,
    wait_until,
)
from verifier_svc.engine import engine as engine_module
from verifier_svc.request.types import FinishReason


def test_cancel_at_any_time_leaves_the_others_alone(
    tiny_llama: Path, texts: Texts, drafter: Callable[..., ScriptedDrafter]
) -> None:
    chance = random.Random(1)
    port = drafter(good(texts, wrong=0.3))
    flags = ("--draft-length", "3", "--token-budget", "32", "--max-sequences", "4")
    with RunningEngine(tiny_llama, port, *flags) as engine:
        victims: list[int] = []
        kept: list[int] = []
        for i in range(40):
            prompt = PROMPTS[i % len(PROMPTS)]
            seq = engine.submit(prompt, max_tokens=LENGTH, ignore_eos=True)
            (kept if i % 4 == 0 else victims).append(seq)
            if victims and chance.random() < 0.8:
                time.sleep(chance.random() * 0.01)
                engine.cancel(victims.pop(chance.randrange(len(victims))))
        for seq in victims:
            engine.cancel(seq)
        for i, result in zip(range(0, 40, 4), engine.finish(*kept), strict=True):
            assert result.text == texts[i % len(PROMPTS)]
        for seq in [*kept, 10**6]:
            engine.cancel(seq)  # too late, or never known: no error
        # All blocks are free again: the longest sequence there can be is admitted.
        assert engine.generate(prompt_of(5), max_tokens=507, ignore_eos=True).finished
        wait_until(lambda: port.held == [])


def test_requests_queue_while_the_cache_is_full(tiny_llama: Path, texts: Texts) -> None:
    """Blocks for one sequence of full length: requests run one after the other."""
    with RunningEngine(tiny_llama, None, "--kv-memory", "460KiB") as engine:
        fill = prompt_of(40)
        first = engine.submit(fill, max_tokens=472, ignore_eos=True)
        rest = [engine.submit(p, max_tokens=LENGTH, ignore_eos=True) for p in PROMPTS]
        while not engine.results[first].rounds:
            engine.step()
        results = engine.finish(first, *rest)
    assert [result.text for result in results[1:]] == texts
    waits = [result.finished.timings.queue for result in results]
    assert min(waits[1:]) > waits[0]


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 5, "ignore_eos": True},
        {
            "temperature": 0.8, "seed": 2**64 - 1, "repetition_penalty": 1.3,
            "presence_penalty": 0.5, "frequency_penalty": 0.25, "min_tokens": 20,
        },
    ],
)  # fmt: skip
def test_a_resumed_generation_goes_on_as_if_nothing_had_happened(
    tiny_llama: Path, sampling: dict[str, Any]
) -> None:
    prompt = prompt_of(9)
    with RunningEngine(tiny_llama) as engine:
        whole = engine.generate(prompt, max_tokens=32, **sampling)
        assert len(whole.text) > len(prompt) + 19
        for emitted in (1, 5, 12, 19, len(whole.text) - len(prompt) - 1):
            so_far = whole.text[: len(prompt) + emitted]
            resumed = engine.generate(so_far, output_start=len(prompt), max_tokens=32, **sampling)
            assert resumed.text == whole.text
            assert resumed.finished.reason is whole.finished.reason
            usage = resumed.finished.usage
            assert usage.prompt_tokens == len(prompt)
            assert usage.completion_tokens == len(whole.text) - len(prompt)


def test_an_end_token_inside_an_accepted_draft(
    tiny_llama: Path, drafter: Callable[..., ScriptedDrafter]
) -> None:
    prompt = prompt_of(12)
    with RunningEngine(tiny_llama) as engine:
        text = engine.generate(prompt, ignore_eos=True).text
    stop = text[len(prompt) + 2]
    assert stop not in text[len(prompt) : len(prompt) + 2]
    port = drafter(good([text]))
    with RunningEngine(tiny_llama, port, "--draft-length", "8") as engine:
        result = engine.generate(prompt, ignore_eos=True, stop_token_ids=frozenset({stop}))
    assert result.text == text[: len(prompt) + 3]
    assert result.finished.reason is FinishReason.STOP
    check_usage(result)
    assert result.finished.usage.accepted_draft_tokens == 2


def test_the_context_ends_generations_at_its_last_position(
    tiny_llama: Path, drafter: Callable[..., ScriptedDrafter]
) -> None:
    prompt = prompt_of(50)
    flags = ("--max-model-len", "64", "--draft-length", "8")
    (text,) = greedy_texts(tiny_llama, [prompt], 14)
    with RunningEngine(tiny_llama, drafter(good([text])), *flags) as engine:
        result = engine.generate(prompt, max_tokens=14, ignore_eos=True)
        over = engine.generate(prompt, max_tokens=1000, ignore_eos=True)
        last = engine.generate(text[:-1], max_tokens=9, ignore_eos=True)
    assert result.text == over.text == last.text == text
    assert over.finished.reason is FinishReason.LENGTH


def test_a_failed_step_ends_what_ran_in_it_and_nothing_else(
    tiny_llama: Path, texts: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunningEngine(tiny_llama, None, "--max-sequences", "2") as engine:
        run = engine.target.run
        failures = iter([False, False, False, True])

        def failing(*args: Any, **kwargs: Any) -> torch.Tensor:
            if next(failures, False):
                raise RuntimeError("scripted")
            return run(*args, **kwargs)

        monkeypatch.setattr(engine.target, "run", failing)
        seqs = [engine.submit(p, max_tokens=LENGTH, ignore_eos=True) for p in PROMPTS]
        results = engine.finish(*seqs)
        assert all("engine failed" in result.failed.reason for result in results[:2])
        assert [result.text for result in results[2:]] == texts[2:]
        assert engine.generate(PROMPTS[0], max_tokens=LENGTH, ignore_eos=True).text == texts[0]
        assert engine.engine.alive


def test_a_broken_port_ends_no_generation_for_good(
    tiny_llama: Path, texts: Texts, drafter: Callable[..., ScriptedDrafter]
) -> None:
    """An exception from the drafter's side of the process fails a step, not the engine."""
    port = drafter(good(texts))
    with RunningEngine(tiny_llama, port, "--draft-length", "2") as engine:
        original = port.propose
        port.propose = lambda *_: [1 // 0]
        engine.finish(engine.submit(PROMPTS[2], max_tokens=LENGTH, ignore_eos=True))
        port.propose = original
        port.unlink()
        port.link()
        assert engine.generate(PROMPTS[2], max_tokens=LENGTH, ignore_eos=True).text == texts[2]


def test_timings_add_up(
    tiny_llama: Path, texts: Texts, drafter: Callable[..., ScriptedDrafter]
) -> None:
    port = drafter(good(texts), delay=0.003)
    with RunningEngine(tiny_llama, port, "--draft-length", "2") as engine:
        started = time.perf_counter()
        result = engine.generate(PROMPTS[2], max_tokens=LENGTH, ignore_eos=True)
        wall = time.perf_counter() - started
    port.settle()
    timings = result.finished.timings
    parts = [timings.queue, timings.prefill, timings.target, timings.draw, timings.drafter,
             timings.drafter_queue, timings.wire, timings.host]  # fmt: skip
    assert min(parts) >= 0
    assert timings.prefill > 0
    assert timings.target > 0
    assert timings.wire > 0.003 * 5
    assert 0.5 * wall < sum(parts) <= wall


def test_generations_that_want_no_drafts_get_none(
    tiny_llama: Path, texts: Texts, drafter: Callable[..., ScriptedDrafter]
) -> None:
    port = drafter(good(texts))
    with RunningEngine(tiny_llama, port, "--draft-length", "4") as engine:
        plain = engine.submit(PROMPTS[1], max_tokens=LENGTH, ignore_eos=True, max_draft_tokens=0)
        capped = engine.submit(PROMPTS[2], max_tokens=LENGTH, ignore_eos=True, max_draft_tokens=2)
        results = engine.finish(plain, capped)
    assert [result.text for result in results] == texts[1:3]
    assert results[0].finished.usage.drafted_rounds == 0
    assert len(results[1].finished.usage.proposed_at) == 2
    assert plain not in port.seen


def test_the_engines_thread_has_the_targets_device_for_its_own(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[str, torch.device]] = []
    monkeypatch.setattr(
        engine_module, "use", lambda device: used.append((threading.current_thread().name, device))
    )
    with RunningEngine(tiny_llama):
        pass
    assert used == [("engine", torch.device("cpu"))]
