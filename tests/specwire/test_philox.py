"""Philox4x32-10 and the exponentials made of it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speckernels import exponential_noise
from speckernels.exponential_noise import exponentials, vocabulary_exponentials
from specwire import philox

# Random123's published known answers for philox4x32, 10 rounds: counter, key, output.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip

words = st.integers(0, 2**32 - 1)


def philox_reference(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in integers of any size, written from the paper's figure."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for round_ in range(10):
        high0, low0 = divmod(0xD2511F53 * x0, 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * x2, 1 << 32)
        bump0, bump1 = (
            (k0 + round_ * 0x9E3779B9) % (1 << 32),
            (k1 + round_ * 0xBB67AE85) % (1 << 32),
        )
        x0, x1, x2, x3 = high1 ^ x1 ^ bump0, low1, high0 ^ x3 ^ bump1, low0
    return [x0, x1, x2, x3]


def as_numpy(values: list[int]) -> tuple[Any, ...]:
    return tuple(np.array([value], dtype=np.int64) for value in values)


def as_torch(values: list[int]) -> tuple[Any, ...]:
    return tuple(torch.tensor([value]) for value in values)


@pytest.mark.parametrize("array", [as_numpy, as_torch])
@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_published_vectors(array: Any, counter: str, key: str, output: str) -> None:
    given_counter, given_key, wanted = (
        [int(word, 16) for word in text.split()] for text in (counter, key, output)
    )
    assert philox_reference(given_counter, given_key) == wanted
    got = philox.philox(array(given_counter), array(given_key))
    assert [int(word[0]) for word in got] == wanted


@given(st.lists(words, min_size=4, max_size=4), st.lists(words, min_size=2, max_size=2))
def test_any_words_agree_in_numpy_torch_and_plain_integers(
    counter: list[int], key: list[int]
) -> None:
    wanted = philox_reference(counter, key)
    for array in (as_numpy, as_torch):
        assert [int(w[0]) for w in philox.philox(array(counter), array(key))] == wanted


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**20), st.integers(0, 2**18), st.integers(0, 127))
def test_the_noise_of_a_token_is_its_word_of_the_documented_counter(
    seed: int, position: int, token: int, choice: int
) -> None:
    block = philox_reference(
        [position, token // 4, choice, philox.TOKEN_DOMAIN], [seed % 2**32, seed >> 32]
    )
    v = (block[token % 4] + 0.5) / 2**32
    got = exponentials(
        torch.tensor(philox.signed64(seed)),
        torch.tensor(position),
        torch.tensor([token]),
        torch.tensor(choice),
    )
    assert got.dtype == torch.float64
    assert got.item() == pytest.approx(-math.log1p(-v), rel=1e-14)


def test_exponentials_broadcast_over_seeds_positions_and_tokens() -> None:
    seeds, positions = torch.arange(3).view(3, 1, 1), torch.arange(5).view(1, 5, 1)
    grid = exponentials(seeds, positions, torch.arange(7), torch.tensor(0))
    assert grid.shape == (3, 5, 7)
    one = exponentials(torch.tensor(2), torch.tensor(4), torch.tensor([6]), torch.tensor(0))
    assert grid[2, 4, 6] == one[0]


@pytest.mark.parametrize("vocab", [1, 3, 4, 97, 1024])
def test_the_noise_of_a_vocabulary_is_that_of_its_tokens(vocab: int) -> None:
    seed, position, choice = philox.signed64(2**64 - 5), 1000, 3
    whole = vocabulary_exponentials(seed, position, choice, torch.zeros(vocab))
    assert torch.equal(whole, exponentials(seed, position, torch.arange(vocab), choice))


@pytest.mark.parametrize("word", [0, 1, 2**32 - 2, 2**32 - 1])
def test_the_extreme_words_give_neither_zero_nor_infinity(
    word: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exponential_noise, "token_words", lambda *_: (torch.tensor([word]),) * 4)
    zero = torch.tensor(0)
    value = exponentials(zero, zero, torch.tensor([0]), zero).item()
    assert 0 < value < 22.9
    assert value == pytest.approx(-math.log1p(-(word + 0.5) / 2**32), rel=1e-14)


def test_a_million_exponentials_have_mean_and_variance_one_and_do_not_repeat() -> None:
    seeds = torch.arange(64).view(-1, 1, 1)
    values = exponentials(
        seeds, torch.arange(16).view(1, -1, 1), torch.arange(1024), torch.tensor(0)
    ).flatten()
    n = len(values)
    assert values.min() > 0
    assert values.max() < 22.9
    # Standard errors: 1 / sqrt(n) of the mean, sqrt(8 / n) of the variance.
    assert values.mean().item() == pytest.approx(1, abs=5 / math.sqrt(n))
    assert values.var().item() == pytest.approx(1, abs=5 * math.sqrt(8 / n))
    # 32-bit words collide about n**2 / 2**33 = 128 times in 2**20 draws.
    assert n - len(set(values.tolist())) < 250


def test_choices_positions_and_seeds_have_noise_of_their_own() -> None:
    tokens, zero, one = torch.arange(8), torch.tensor(0), torch.tensor(1)
    drawn = [
        exponentials(seed, position, tokens, choice)
        for seed, position, choice in ((zero, zero, zero), (one, zero, zero), (zero, one, zero),
                                       (zero, zero, one))
    ]  # fmt: skip
    for i, left in enumerate(drawn):
        assert not any((left == right).any() for right in drawn[i + 1 :])


@given(st.integers(0, 2**64 - 1))
def test_signed64_keeps_the_bits(seed: int) -> None:
    signed = philox.signed64(seed)
    assert -(2**63) <= signed < 2**63
    assert signed % 2**64 == seed
