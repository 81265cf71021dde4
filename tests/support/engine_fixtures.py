"""What the engine's tests share: prompts, reference texts, drafters, and what must add up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from specwire.messages import DraftSource
from tests.support.running_engine import Result, RunningEngine

VOCAB = 97
LENGTH = 32
Prompt = tuple[int, ...]
Texts = list[list[int]]


def prompt_of(length: int, seed: int = 0) -> Prompt:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return tuple(torch.randint(2, VOCAB, (length,), generator=generator).tolist())


PROMPTS = [prompt_of(n) for n in (1, 2, 17, 64, 150)]


def check_usage(result: Result) -> None:
    """Counts agree with each other and with what was emitted."""
    usage, rounds = result.finished.usage, result.rounds
    assert usage.completion_tokens == sum(len(e.tokens) for e in rounds)
    assert usage.rounds == len(rounds)
    assert usage.drafted_rounds == sum(e.drafted > 0 for e in rounds)
    assert usage.accepted_draft_tokens == sum(usage.accepted_at) == sum(e.accepted for e in rounds)
    proposed = usage.accepted_draft_tokens + usage.rejected_draft_tokens
    assert proposed == sum(usage.proposed_at) == sum(e.drafted for e in rounds)
    looked_up = [e for e in rounds if e.source is DraftSource.LOOKUP]
    assert sum(usage.lookup_proposed_at) == sum(e.drafted for e in looked_up)
    assert sum(usage.lookup_accepted_at) == sum(e.accepted for e in looked_up)
    for emitted in rounds[:-1]:
        assert len(emitted.tokens) == emitted.accepted + 1
    # An end token inside a draft leaves no token after it.
    assert rounds[-1].accepted <= len(rounds[-1].tokens) <= rounds[-1].accepted + 1
    assert usage.proposed_at == sorted(usage.proposed_at, reverse=True)
    assert all(a <= p for a, p in zip(usage.accepted_at, usage.proposed_at, strict=True))


def generate_all(engine: RunningEngine, **options: Any) -> list[Result]:
    """All prompts at once, greedy, end tokens ignored."""
    sampling = {"max_tokens": LENGTH, "ignore_eos": True, **options}
    return engine.finish(*[engine.submit(prompt, **sampling) for prompt in PROMPTS])


def outputs(engine: RunningEngine, prompt: Sequence[int], **options: Any) -> list[int]:
    return engine.generate(prompt, **options).text[len(prompt) :]
