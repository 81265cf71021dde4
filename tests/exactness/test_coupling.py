"""Coupled drafts at T = 1: accepted as often as drafts drawn with shared noise can be.

Where target and drafter race with the same noise over p and q, they agree with a chance between
(1 - TV) / (1 + TV) and 1 - TV, TV their total variation distance (Daliri et al. 2024). 1 - TV is
what rejection sampling reaches; drafting the drafter's most likely token q* is accepted with p(q*).
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoModelForCausalLM

import speckernels as kernels
from drafter_svc.inference.sampling import noise_of
from speckernels.exponential_noise import exponentials
from specwire.messages import SequenceContext
from tests.support.sampling_fixtures import draw_one
from verifier_svc.request.types import Sampling
from verifier_svc.sampling.sampling_row import SamplingRow

VOCAB, DRAWS = 97, 20_000
CONTEXTS = 4
# How far the drafter's logits are from the target's, and its draft temperature.
DRAFTERS = {"near": (0.5, 1.0), "far": (1.5, 1.2)}


@pytest.fixture(scope="module")
def logits(tiny_llama: Path) -> torch.Tensor:
    """The target's at the positions of one text, [CONTEXTS, VOCAB]."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    text = torch.randint(2, VOCAB, (1, CONTEXTS), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        rows: torch.Tensor = model(text).logits[0].float()
    return rows


def target_draws(logits: torch.Tensor, position: int) -> npt.NDArray[np.int64]:
    """The verifier's draws of all seeds; checked against its own function on some of them."""
    noise = exponentials(torch.arange(DRAWS)[:, None], position, torch.arange(VOCAB), 0)
    drawn: npt.NDArray[np.int64] = (noise * torch.exp(-logits.double())).argmin(-1).numpy()
    for seed in range(0, DRAWS, 400):
        assert drawn[seed] == draw_one(logits, SamplingRow(Sampling(seed=seed), position))
    return drawn


@pytest.fixture(scope="module")
def drawn(logits: torch.Tensor) -> list[npt.NDArray[np.int64]]:
    """By context, what the verifier draws; the drawn token's position is 1, 2, ..."""
    return [target_draws(row, position) for position, row in enumerate(logits, 1)]


def draft_draws(
    logits: torch.Tensor, position: int, draft_temperature: float, first_seed: int = 0
) -> npt.NDArray[np.int64]:
    """The drafter's draws of all seeds from one row of its logits."""
    seeds = range(first_seed, first_seed + DRAWS)
    openings = [SequenceContext(0, 1, seed=seed, temperature=1.0) for seed in seeds]
    noise = noise_of(openings, [position] * DRAWS, draft_temperature, torch.device("cpu"))
    drafts: npt.NDArray[np.int64] = kernels.sample(logits.expand(DRAWS, -1), noise).numpy()
    return drafts


@pytest.mark.parametrize("name", DRAFTERS)
def test_coupled_acceptance_lies_within_its_bounds(
    logits: torch.Tensor,
    drawn: list[npt.NDArray[np.int64]],
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    distance, draft_temperature = DRAFTERS[name]
    generator = torch.Generator().manual_seed(1)
    guessed = logits + distance * torch.randn(logits.shape, generator=generator)
    lines = [f"{name} drafter: coupled, bounds, 1 - TV, argmax drafts"]
    better = 0
    for position, (p_row, q_row) in enumerate(zip(logits, guessed, strict=True), 1):
        drafts = draft_draws(q_row, position, draft_temperature)
        accepted = float((drafts == drawn[position - 1]).mean())
        q = torch.softmax(q_row.double() / draft_temperature, -1)
        p = torch.softmax(p_row.double(), -1)
        tv = float((p - q).abs().sum() / 2)
        low, high = (1 - tv) / (1 + tv), 1 - tv
        argmax = float(p[q.argmax()])
        lines.append(
            f"  position {position}: {accepted:.3f} in [{low:.3f}, {high:.3f}], {high:.3f}, "
            f"{argmax:.3f}"
        )
        error = 4 * math.sqrt(accepted * (1 - accepted) / DRAWS)
        assert low - error <= accepted <= high + error
        better += accepted > argmax
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    if name == "near":
        assert better > CONTEXTS / 2


def test_a_drafter_that_is_the_target_is_always_accepted(
    logits: torch.Tensor, drawn: list[npt.NDArray[np.int64]]
) -> None:
    assert (draft_draws(logits[0], 1, 1.0) == drawn[0]).all()


def test_without_shared_noise_acceptance_falls_below_the_bounds(
    logits: torch.Tensor, drawn: list[npt.NDArray[np.int64]]
) -> None:
    """The bound is not loose enough to hold by itself: other seeds break it."""
    generator = torch.Generator().manual_seed(1)
    q_row = logits[0] + 0.5 * torch.randn(VOCAB, generator=generator)
    drafts = draft_draws(q_row, 1, 1.0, first_seed=DRAWS)
    p, q = torch.softmax(logits[0].double(), -1), torch.softmax(q_row.double(), -1)
    tv = float((p - q).abs().sum() / 2)
    accepted = float((drafts == drawn[0]).mean())
    assert accepted < (1 - tv) / (1 + tv) - 0.1
