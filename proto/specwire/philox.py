"""Keyed noise: the same key gives the same draw on every device and at both ends.

Written over array operators, so that numpy arrays and torch tensors of int64 both work.
Philox4x32-10 follows Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
"""

from __future__ import annotations

from typing import Any

# An int64 array: numpy.ndarray or torch.Tensor.
Array = Any

MASK = 0xFFFFFFFF
_MULTIPLY = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

# Domain tag of the noise that draws tokens: "toke".
TOKEN_DOMAIN = 0x746F6B65


def philox(
    counter: tuple[Array, Array, Array, Array], key: tuple[Array, Array]
) -> tuple[Array, Array, Array, Array]:
    """Philox4x32-10. Words are int64 in [0, 2**32); at least one must be an array."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _product(c0, _MULTIPLY[0])
        high1, low1 = _product(c2, _MULTIPLY[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = (k0 + _WEYL[0]) & MASK
        k1 = (k1 + _WEYL[1]) & MASK
    return c0, c1, c2, c3


def _product(word: Array, factor: int) -> tuple[Array, Array]:
    """The high and the low word of a product of two words.

    In halves: int64 products would wrap, and compilers reckon that signed ones never do.
    """
    low = word * (factor & 0xFFFF)
    middle = word * (factor >> 16) + (low >> 16)
    return middle >> 16, (middle & 0xFFFF) << 16 | low & 0xFFFF


def token_words(seed: Array, position: Array, block: Array, choice: Array) -> tuple[Array, ...]:
    """Four words for the tokens 4 * block .. 4 * block + 3, drawn at `position`.

    Args:
        seed: 64-bit, as int64 bits.
        position: absolute index of the token to draw.
        block: token id >> 2.
        choice: index among the n choices of a request.
    """
    return philox((position, block, choice, TOKEN_DOMAIN), (seed & MASK, (seed >> 32) & MASK))


def signed64(seed: int) -> int:
    """The int64 with the bits of an unsigned 64-bit seed."""
    return seed - (1 << 64) if seed >= 1 << 63 else seed
