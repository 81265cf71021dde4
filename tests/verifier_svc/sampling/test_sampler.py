"""Drawing against slow references, row by row, in batches, and on a device without values."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import speckernels as kernels
from speckernels import SamplingKeys
from tests.support.sampling_fixtures import (
    as_accelerator,
    draw_one,
    drawn,
    gaussian,
    reference_truncate,
    whole_race,
)
from verifier_svc.request.types import Sampling
from verifier_svc.sampling.penalties import penalize
from verifier_svc.sampling.sampler import NOT_FINITE, UNDECIDED, sample
from verifier_svc.sampling.sampling_row import SamplingRow


@pytest.mark.parametrize(
    ("vocab", "spread"),
    [(2, 1.0), (64, 1.0), (65, 3.0), (97, 0.0), (1000, 0.01), (3000, 1.0), (3000, 8.0)],
)
def test_draws_are_won_by_the_winner_of_the_reference_race(vocab: int, spread: float) -> None:
    logits = gaussian(vocab, spread, vocab)
    reference = logits.double().numpy()
    for seed in range(60):
        wide = (seed * 0x9E3779B97F4A7C15) % 2**64
        won = draw_one(logits, SamplingRow(Sampling(seed=wide), seed + 7, seed % 3))
        assert won == whole_race(reference, wide, seed + 7, seed % 3)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 200),
    st.floats(0.05, 5),
    st.integers(0, 2**64 - 1),
    st.integers(0, 10**6),
    st.floats(0.05, 10),
)
def test_any_temperature_and_seed(
    vocab: int, spread: float, seed: int, position: int, temperature: float
) -> None:
    logits = gaussian(vocab, spread, seed % 2**31)
    won = draw_one(logits, SamplingRow(Sampling(seed=seed, temperature=temperature), position))
    assert won == whole_race((logits / temperature).double().numpy(), seed, position, 0)


def test_ties_go_to_the_lowest_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speckernels.library._library", None)
    alike = torch.full((1, 1), 2**31)
    monkeypatch.setattr(
        "speckernels.sampling.token_words",
        lambda seed, position, block, choice: (alike.expand(1, len(block)),) * 4,
    )
    logits = torch.zeros(300)
    row = SamplingRow(Sampling(seed=0), position=0)
    assert draw_one(logits, row) == 0
    logits[:5] = -1.0
    assert draw_one(logits, row) == 5
    key = torch.zeros(1, dtype=torch.int64)
    noise = SamplingKeys(key, key, key, torch.ones(1))
    assert kernels.sample(torch.zeros(1, 3), noise, torch.tensor([9, 4, 7])).tolist() == [1]


LIMITS: list[dict[str, Any]] = [
    {"top_k": 5},
    {"top_p": 0.6},
    {"min_p": 0.2},
    {"top_k": 90, "top_p": 0.9},
]


@pytest.mark.parametrize("way", ["cpu", "accelerator"])
def test_logits_that_are_not_numbers_are_not_drawn_from(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "accelerator":
        as_accelerator(monkeypatch)
    for bad in (math.nan, math.inf):
        logits = torch.zeros(3, 70)
        logits[0, 69] = bad
        logits[2] = -math.inf
        for temperature in (0.0, 1.0):
            for limits in ({}, *LIMITS):
                row = SamplingRow(Sampling(seed=1, temperature=temperature, **limits), position=0)
                first, second, third = drawn(logits, [row] * 3)
                assert (first, third) == (NOT_FINITE, NOT_FINITE)
                assert second >= 0


def test_argmax_ties_go_to_the_lowest_id() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 3.0])
    assert draw_one(logits, SamplingRow(Sampling(temperature=0), position=0)) == 1


def test_the_coldest_temperature_is_argmax_and_the_hottest_still_draws() -> None:
    logits = gaussian(97, 100.0, 0)
    for seed in range(20):
        sampling = Sampling(temperature=1e-5, seed=seed)
        assert draw_one(logits, SamplingRow(sampling, position=3)) == int(logits.argmax())
    hot = {
        draw_one(logits, SamplingRow(Sampling(temperature=100.0, seed=s), position=3))
        for s in range(50)
    }
    assert len(hot) > 10


def test_a_token_of_no_probability_is_never_drawn() -> None:
    logits = torch.zeros(200)
    logits[::2] = -math.inf
    for seed in range(200):
        assert draw_one(logits, SamplingRow(Sampling(seed=seed), position=0)) % 2 == 1


def test_draws_depend_on_seed_position_and_choice() -> None:
    logits = torch.zeros(4096)

    def won(seed: int = 0, position: int = 0, choice: int = 0) -> int:
        return draw_one(logits, SamplingRow(Sampling(seed=seed), position, choice))

    assert won() == won()
    assert len({won(), won(seed=1), won(seed=1 << 40), won(position=1), won(choice=1)}) == 5


@pytest.mark.parametrize("limits", LIMITS)
def test_truncated_draws_race_among_what_stays_with_unchanged_noise(limits: dict[str, Any]) -> None:
    logits = gaussian(97, 1.5, 3)
    for seed in range(100):
        sampling = Sampling(seed=seed, temperature=0.75, **limits)
        scaled = (logits / 0.75).double().numpy()
        kept = np.full_like(scaled, -np.inf)
        stays = reference_truncate(scaled, sampling)
        kept[stays] = scaled[stays]
        assert draw_one(logits, SamplingRow(sampling, position=9)) == whole_race(kept, seed, 9, 0)


def any_row(chance: random.Random, vocab: int) -> SamplingRow:
    """Every kind of sampling, alone and together."""

    def some(count: int) -> list[int]:
        return [chance.randrange(vocab) for _ in range(chance.randrange(count))]

    output = some(9)
    sampling = Sampling(
        temperature=chance.choice([0.0, 0.3, 1.0, 1.7]),
        seed=chance.getrandbits(64),
        top_k=chance.choice([0, 0, 1, 6, 40, vocab, vocab + 9]),
        top_p=chance.choice([1.0, 1.0, 0.95, 0.5, 1e-6]),
        min_p=chance.choice([0.0, 0.0, 0.05, 1.0]),
        repetition_penalty=chance.choice([1.0, 1.0, 1.3]),
        presence_penalty=chance.choice([0.0, 0.0, 0.7]),
        frequency_penalty=chance.choice([0.0, 0.0, -0.4]),
        logit_bias=dict.fromkeys(some(4), chance.uniform(-3, 3)),
    )
    counts = {token: output.count(token) for token in output}
    place = chance.randrange(100_000), chance.randrange(4)
    return SamplingRow(sampling, *place, some(9), counts, some(4))


def reference(logits: torch.Tensor, row: SamplingRow) -> int:
    # Penalties have a reference of their own; in float64 they would not tie as they do in fp32.
    (scores,) = penalize(logits[None], [row])
    if row.sampling.temperature == 0:
        return int(scores.argmax())
    scaled = (scores / row.sampling.temperature).double().numpy()
    stays = reference_truncate(scaled, row.sampling)
    kept = np.full_like(scaled, -np.inf)
    kept[stays] = scaled[stays]
    return whole_race(kept, row.sampling.seed, row.position, row.choice)


@pytest.mark.parametrize("spread", [0.0, 2.0, 6.0])
def test_a_batch_is_drawn_as_its_rows_are(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(spread)
    vocab = 120
    batches = []
    for i in range(25):
        rows = [any_row(chance, vocab) for _ in range(12)]
        logits = torch.stack([gaussian(vocab, spread, 100 * i + j) for j in range(12)])
        logits[::3] = logits[::3].round()
        batches.append((logits, rows))
    wanted = [[reference(*each) for each in zip(*batch, strict=True)] for batch in batches]
    for (logits, rows), tokens in zip(batches, wanted, strict=True):
        assert [draw_one(*each) for each in zip(logits, rows, strict=True)] == tokens
        assert drawn(logits, rows) == tokens
    as_accelerator(monkeypatch)
    undecided = 0
    for (logits, rows), tokens in zip(batches, wanted, strict=True):
        for candidates in (1, 8, 50, vocab):
            undecided += sample(logits, rows, candidates).tolist().count(UNDECIDED)
            assert drawn(logits, rows, candidates) == tokens
    assert undecided


def test_an_accelerator_is_not_waited_for() -> None:
    """Tensors on torch's meta device have no values: to look at one, or to take one from the
    CPU into an operator, is an error."""
    chance = random.Random(0)
    for vocab in (300, 9000):
        rows = [any_row(chance, vocab) for _ in range(40)]
        winners = sample(torch.empty(40, vocab, device="meta"), rows)
        assert winners.device.type == "meta"
        assert winners.shape == (40,)
        assert winners.dtype == torch.int64
