"""What the tests of drawing share: slow references, and a CPU that is treated as an accelerator."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch

from specwire.philox import TOKEN_DOMAIN, philox
from verifier_svc.request.types import Sampling
from verifier_svc.sampling.sampler import resample_undecided, sample
from verifier_svc.sampling.sampling_row import SamplingRow

Scores = npt.NDArray[np.float64]


def gaussian(vocab: int, spread: float, seed: int) -> torch.Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * spread


def as_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes the CPU for a device on which it must not look at values."""
    for module in ("verification", "sampler", "truncation"):
        monkeypatch.setattr(f"verifier_svc.sampling.{module}.is_async", lambda device: True)


def drawn(logits: torch.Tensor, rows: list[SamplingRow], candidates: int = 8) -> list[int]:
    """What is drawn from logits [rows, vocab] in one batch."""
    return resample_undecided(sample(logits, rows, candidates).tolist(), logits, rows)


def draw_one(logits: torch.Tensor, row: SamplingRow) -> int:
    """What is drawn from logits [vocab]."""
    (token,) = drawn(logits[None], [row])
    return token


def whole_race(scaled: Scores, seed: int, position: int, choice: int) -> int:
    """argmin E / p over the whole vocabulary, in float64; -inf takes no part."""
    ids = np.arange(len(scaled))
    block = ids >> 2
    key = tuple(np.full_like(ids, word) for word in (seed & 0xFFFFFFFF, seed >> 32))
    counter = tuple(np.full_like(ids, word) for word in (position, 0, choice, TOKEN_DOMAIN))
    words = np.stack(philox((counter[0], block, counter[2], counter[3]), key))  # type: ignore[arg-type]
    word = words[ids & 3, ids]
    noise = -np.log1p(-(word + 0.5) * 2.0**-32)
    with np.errstate(over="ignore"):
        ratios = np.where(np.isfinite(scaled), noise * np.exp(scaled.max() - scaled), np.inf)
    return int(ratios.argmin())


def reference_truncate(scaled: Scores, sampling: Sampling) -> list[int]:
    """Ids that stay, best first, one token after the other."""
    ids = sorted(range(len(scaled)), key=lambda i: (-scaled[i], i))
    if sampling.top_k:
        ids = ids[: sampling.top_k]
    weights = [math.exp(scaled[i] - scaled[ids[0]]) for i in ids]
    shares = [weight / math.fsum(weights) for weight in weights]
    kept: list[int] = []
    before = 0.0
    for i, share in zip(ids, shares, strict=True):
        within = sampling.top_p >= 1 or before < sampling.top_p
        if not kept or (within and share >= sampling.min_p * shares[0]):
            kept.append(i)
        before += share
    return kept


def reference_penalize(logits: list[float], row: SamplingRow) -> list[float]:
    """Token by token, in the documented order."""
    sampling, counts = row.sampling, row.output_counts
    scores = []
    for token, score in enumerate(logits):
        if token in row.prompt or token in counts:
            factor = sampling.repetition_penalty
            score = score / factor if score > 0 else score * factor
        if token in counts:
            score -= sampling.presence_penalty + sampling.frequency_penalty * counts[token]
        score += sampling.logit_bias.get(token, 0.0)
        scores.append(-math.inf if token in row.banned else score)
    return scores
