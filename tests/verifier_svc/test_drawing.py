"""Drawing against slow references: the whole race, truncation, penalties, masks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specwire.noise import TOKEN_DOMAIN, philox
from verifier_svc.drawing import draw, logprobs_of, process, race, truncate
from verifier_svc.generation import Sampling

Scores = npt.NDArray[np.float64]


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


def gaussian(vocab: int, spread: float, seed: int) -> torch.Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * spread


@pytest.mark.parametrize(
    ("vocab", "spread"),
    [(2, 1.0), (64, 1.0), (65, 3.0), (97, 0.0), (1000, 0.01), (3000, 1.0), (3000, 8.0)],
)
def test_draws_are_won_by_the_winner_of_the_reference_race(vocab: int, spread: float) -> None:
    logits = gaussian(vocab, spread, vocab)
    reference = logits.double().numpy()
    for seed in range(60):
        wide = (seed * 0x9E3779B97F4A7C15) % 2**64
        won = draw(logits, Sampling(seed=wide), position=seed + 7, choice=seed % 3)
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
    won = draw(logits, Sampling(seed=seed, temperature=temperature), position=position, choice=0)
    assert won == whole_race((logits / temperature).double().numpy(), seed, position, 0)


def test_ties_go_to_the_lowest_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specwire.kernels.library._library", None)
    alike = torch.full((1, 1), 2**31)
    monkeypatch.setattr(
        "specwire.kernels.drawing.token_words",
        lambda seed, position, block, choice: (alike.expand(1, len(block)),) * 4,
    )
    logits = torch.zeros(300)
    assert race(None, logits, 1.0, 0, 0, 0) == 0
    logits[:5] = -1.0
    assert race(None, logits, 1.0, 0, 0, 0) == 5
    assert race(torch.tensor([9, 4, 7]), torch.zeros(3), 1.0, 0, 0, 0) == 4


def test_logits_that_are_not_numbers_are_not_drawn_from() -> None:
    logits = torch.zeros(70)
    logits[69] = math.nan
    for broken in (logits, torch.full((70,), -math.inf)):
        with pytest.raises(ValueError, match="not finite"):
            draw(broken, Sampling(seed=1), position=0, choice=0)


def test_argmax_ties_go_to_the_lowest_id() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 3.0])
    assert draw(logits, Sampling(temperature=0), position=0, choice=0) == 1


def test_the_coldest_temperature_is_argmax_and_the_hottest_still_draws() -> None:
    logits = gaussian(97, 100.0, 0)
    for seed in range(20):
        sampling = Sampling(temperature=1e-5, seed=seed)
        assert draw(logits, sampling, position=3, choice=0) == int(logits.argmax())
    hot = {
        draw(logits, Sampling(temperature=100.0, seed=s), position=3, choice=0) for s in range(50)
    }
    assert len(hot) > 10


def test_a_token_of_no_probability_is_never_drawn() -> None:
    logits = torch.zeros(200)
    logits[::2] = -math.inf
    for seed in range(200):
        assert draw(logits, Sampling(seed=seed), position=0, choice=0) % 2 == 1


def test_draws_depend_on_seed_position_and_choice() -> None:
    logits = torch.zeros(4096)

    def drawn(seed: int = 0, position: int = 0, choice: int = 0) -> int:
        return draw(logits, Sampling(seed=seed), position=position, choice=choice)

    assert drawn() == drawn()
    assert (
        len({drawn(), drawn(seed=1), drawn(seed=1 << 40), drawn(position=1), drawn(choice=1)}) == 5
    )


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


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(0, 2**31),
    st.integers(0, 70),
    st.sampled_from([1.0, 0.99, 0.7, 0.31, 0.013]),
    st.sampled_from([0.0, 0.013, 0.21, 0.99, 1.0]),
)
def test_truncation_keeps_what_the_reference_keeps(
    vocab: int, seed: int, top_k: int, top_p: float, min_p: float
) -> None:
    scaled = gaussian(vocab, 2.0, seed)
    sampling = Sampling(top_k=top_k, top_p=top_p, min_p=min_p)
    ids, values = truncate(scaled, sampling)
    wanted = reference_truncate(scaled.double().numpy(), sampling)
    got = list(range(vocab)) if ids is None else ids.tolist()
    assert sorted(got) == sorted(wanted)
    assert torch.equal(values, scaled[got])
    if ids is not None:
        assert got == wanted, "best first"


def test_truncation_ties_keep_the_lowest_ids() -> None:
    ids, _ = truncate(torch.zeros(10), Sampling(top_k=3))
    assert ids is not None
    assert ids.tolist() == [0, 1, 2]


def test_the_most_likely_token_always_stays() -> None:
    ids, _ = truncate(gaussian(50, 1.0, 1), Sampling(top_p=1e-6, min_p=1.0))
    assert ids is not None
    assert len(ids) == 1


@pytest.mark.parametrize(
    "limits", [{"top_k": 5}, {"top_p": 0.6}, {"min_p": 0.2}, {"top_k": 90, "top_p": 0.9}]
)
def test_truncated_draws_race_among_what_stays_with_unchanged_noise(limits: dict[str, Any]) -> None:
    logits = gaussian(97, 1.5, 3)
    for seed in range(100):
        sampling = Sampling(seed=seed, temperature=0.75, **limits)
        scaled = (logits / 0.75).double().numpy()
        kept = np.full_like(scaled, -np.inf)
        stays = reference_truncate(scaled, sampling)
        kept[stays] = scaled[stays]
        assert draw(logits, sampling, position=9, choice=0) == whole_race(kept, seed, 9, 0)


def reference_process(
    logits: list[float], sampling: Sampling, prompt: list[int], output: list[int], banned: set[int]
) -> list[float]:
    """Token by token, in the documented order."""
    scores = []
    for token, score in enumerate(logits):
        if token in prompt or token in output:
            factor = sampling.repetition_penalty
            score = score / factor if score > 0 else score * factor
        if token in output:
            score -= sampling.presence_penalty + sampling.frequency_penalty * output.count(token)
        score += sampling.logit_bias.get(token, 0.0)
        scores.append(-math.inf if token in banned else score)
    return scores


ids = st.integers(0, 19)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(ids, min_size=1, max_size=8),
    st.lists(ids, max_size=12),
    st.sets(ids, max_size=5),
    st.sampled_from([1.0, 1.3, 0.5]),
    st.sampled_from([0.0, 0.7, -1.5]),
    st.sampled_from([0.0, 0.3, -0.4]),
    st.dictionaries(ids, st.floats(-5, 5), max_size=4),
)
def test_penalties_bias_and_masks_follow_the_reference(
    prompt: list[int],
    output: list[int],
    banned: set[int],
    repetition: float,
    presence: float,
    frequency: float,
    bias: dict[int, float],
) -> None:
    logits = gaussian(20, 2.0, 5)
    before = logits.clone()
    sampling = Sampling(
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias=bias,
    )
    counts = {token: output.count(token) for token in output}
    got = process(logits, sampling, prompt, counts, banned)
    wanted = reference_process(logits.tolist(), sampling, prompt, output, banned)
    assert got.tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    assert torch.equal(logits, before), "the target's logits are not changed"


def test_a_banned_token_is_not_drawn_at_any_temperature() -> None:
    logits = torch.zeros(8)
    logits[3] = 50.0
    for temperature in (0.0, 1.0):
        sampling = Sampling(temperature=temperature, min_tokens=1)
        assert draw(logits, sampling, position=0, choice=0, banned={3}) != 3


def test_a_bias_beats_the_models_choice() -> None:
    logits = torch.zeros(8)
    logits[3] = 50.0
    sampling = Sampling(temperature=0, logit_bias={5: 100.0})
    assert draw(logits, sampling, position=0, choice=0) == 5


@pytest.mark.parametrize("top", [0, 1, 5, 20])
def test_logprobs_are_of_the_unprocessed_logits_best_first(top: int) -> None:
    logits = gaussian(40, 2.0, 8)
    exact = logits.double() - torch.logsumexp(logits.double(), -1)
    got = logprobs_of(logits, 11, top)
    assert got.drawn == pytest.approx(exact[11].item(), abs=1e-5)
    order = exact.argsort(descending=True)[:top].tolist()
    assert [token for token, _ in got.top] == order
    assert [value for _, value in got.top] == pytest.approx(exact[order].tolist(), abs=1e-5)
