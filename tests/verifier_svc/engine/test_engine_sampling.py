"""Sampling in the real engine: the same with and without a drafter, and what was asked for."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from specwire.messages import SequenceContext
from tests.support.engine_fixtures import check_usage, outputs, prompt_of
from tests.support.running_engine import Result, RunningEngine, reference_of, target_of
from tests.support.sampling_fixtures import as_accelerator
from tests.support.scripted_drafter import (
    ScriptedDrafter,
    welcome_for,
)
from verifier_svc.request.types import FinishReason

SAMPLINGS: dict[str, dict[str, Any]] = {
    "sampled": {"temperature": 1.0},
    "cool": {"temperature": 0.6},
    "top_k": {"temperature": 1.0, "top_k": 7},
    "top_p": {"temperature": 1.2, "top_p": 0.8},
    "min_p": {"temperature": 1.0, "min_p": 0.1},
    "penalties": {"temperature": 0.9, "repetition_penalty": 1.2, "frequency_penalty": 0.3,
                  "presence_penalty": -0.4},
    "greedy penalties": {"temperature": 0.0, "repetition_penalty": 1.4},
    "bias": {"temperature": 1.0, "logit_bias": {40: 3.0, 41: -100.0, 1: 2.0}},
    "min_tokens": {"temperature": 1.0, "min_tokens": 25, "logit_bias": {1: 5.0}},
    "stop": {"temperature": 1.0, "stop_token_ids": frozenset(range(20, 26))},
    "ignore_eos": {"temperature": 1.0, "ignore_eos": True, "logit_bias": {1: 3.0}},
    "choice": {"temperature": 1.0, "choice_index": 3},
    "logprobs": {"temperature": 0.0, "top_logprobs": 4},
}  # fmt: skip


SAMPLED_PROMPTS = [prompt_of(n, 1) for n in (3, 30, 90)]


@pytest.fixture(scope="module")
def sampled(tiny_llama: Path) -> dict[str, tuple[list[Result], ...]]:
    """By kind of sampling: results without a drafter, with one, and with one where rows are drawn
    at once as on an accelerator, each from one crowded engine.
    """

    def run(port: ScriptedDrafter | None, *flags: str) -> dict[str, list[Result]]:
        with RunningEngine(tiny_llama, port, *flags) as engine:
            seqs = {
                name: [
                    engine.submit(prompt, seed=seed, **options)
                    for prompt, seed in zip(SAMPLED_PROMPTS, (0, 1, 2**63 + 11), strict=True)
                ]
                for name, options in SAMPLINGS.items()
            }
            return {name: engine.finish(*seqs[name]) for name in SAMPLINGS}

    plain = run(None)
    texts = {tuple(result.text): None for results in plain.values() for result in results}

    def propose(tokens: Sequence[int], opening: SequenceContext, count: int) -> list[int]:
        """Several texts begin alike: guess any that fits, so some guesses are wrong."""
        fitting = [text for text in texts if text[: len(tokens)] == tuple(tokens)]
        return list(random.choice(fitting)[len(tokens) :][:count]) if fitting else []

    def run_drafted() -> dict[str, list[Result]]:
        port = ScriptedDrafter(welcome_for(target_of(tiny_llama)), propose)
        results = run(port, "--draft-length", "4")
        assert not port.broken_promises
        return results

    drafted = run_drafted()
    with pytest.MonkeyPatch.context() as monkeypatch:
        as_accelerator(monkeypatch)
        at_once = run_drafted()
    return {name: (plain[name], drafted[name], at_once[name]) for name in SAMPLINGS}


@pytest.mark.parametrize("name", SAMPLINGS)
def test_sampling_is_the_same_with_and_without_a_drafter(
    sampled: dict[str, tuple[list[Result], ...]], name: str
) -> None:
    plain, *drafted = sampled[name]
    for results in drafted:
        for one, other in zip(plain, results, strict=True):
            assert one.text == other.text
            assert one.finished.reason is other.finished.reason
            check_usage(one)
            check_usage(other)
        assert sum(result.finished.usage.accepted_draft_tokens for result in results) > 0


def test_logprobs_are_those_of_the_emitted_tokens_with_and_without_a_drafter(
    sampled: dict[str, tuple[list[Result], ...]], tiny_llama: Path
) -> None:
    for one, *others in zip(*sampled["logprobs"], strict=True):
        flat = [[lp for e in r.rounds for lp in e.logprobs] for r in (one, *others)]
        with torch.inference_mode():
            logits = reference_of(tiny_llama)(torch.tensor([one.text])).logits[0].double()
        exact = torch.log_softmax(logits, -1)[len(one.prompt) - 1 : -1]
        drawn = one.text[len(one.prompt) :]
        assert all(len(drawn) == len(found) for found in flat)
        for row, token, *got in zip(exact, drawn, *flat, strict=True):
            for logprobs in got:
                assert logprobs.drawn == pytest.approx(row[token].item(), abs=1e-4)
                assert [t for t, _ in logprobs.top] == row.topk(4).indices.tolist()
                values = [value for _, value in logprobs.top]
                assert values == pytest.approx(row.topk(4).values.tolist(), abs=1e-4)


def test_what_each_parameter_does(tiny_llama: Path) -> None:
    prompt = prompt_of(12)
    with RunningEngine(tiny_llama) as engine:
        free = outputs(engine, prompt, temperature=1.0, seed=1, ignore_eos=True)
        assert len(free) == 32
        assert outputs(engine, prompt, temperature=1.0, seed=2, ignore_eos=True) != free
        assert outputs(engine, prompt, temperature=1.0, seed=1, choice_index=1) != free
        assert set(outputs(engine, prompt, logit_bias={50: 100.0})) == {50}
        barred = outputs(
            engine, prompt, temperature=1.0, logit_bias=dict.fromkeys(range(60), -100.0)
        )
        assert min(barred) >= 60
        stopped = engine.generate(prompt, temperature=1.0, seed=1, ignore_eos=True,
                                  stop_token_ids=frozenset({free[7]}))  # fmt: skip
        assert stopped.text[len(prompt) :] == free[: free.index(free[7]) + 1]
        assert stopped.finished.reason is FinishReason.STOP
        eos = engine.generate(prompt, logit_bias={1: 100.0})
        assert (eos.text[len(prompt) :], eos.finished.reason) == ([1], FinishReason.STOP)
        late = outputs(engine, prompt, logit_bias={1: 100.0}, min_tokens=6)
        assert late.index(1) == 6
        assert outputs(engine, prompt, logit_bias={1: 100.0}, ignore_eos=True) == [1] * 32
        varied = outputs(engine, prompt, frequency_penalty=2.0, presence_penalty=2.0,
                         repetition_penalty=5.0, ignore_eos=True)  # fmt: skip
        assert len(set(varied)) > len(set(outputs(engine, prompt, ignore_eos=True)))


def test_logits_that_are_not_finite_end_only_their_own_text(tiny_llama: Path) -> None:
    prompts = [prompt_of(12), prompt_of(9), prompt_of(10)]
    with RunningEngine(tiny_llama) as engine:
        wanted = engine.generate(prompts[0], ignore_eos=True).text
        broken: dict[str, Any] = {"temperature": 1.0, "logit_bias": {5: math.nan}}
        first = engine.submit(prompts[0], ignore_eos=True)
        failing = [engine.submit(prompt, **broken) for prompt in prompts[1:]]
        ended, *others = engine.finish(first, *failing)
        assert ended.text == wanted
        assert {other.failed.reason for other in others} == {"The target's logits are not finite."}
        assert outputs(engine, prompts[1], ignore_eos=True)
