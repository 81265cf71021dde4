"""The keyed exponential noise that tokens are sampled with."""

from __future__ import annotations

import torch

from specwire.philox import token_words


def exponentials(
    seed: int | torch.Tensor,
    position: int | torch.Tensor,
    token_ids: torch.Tensor,
    choice: int | torch.Tensor,
) -> torch.Tensor:
    """The exponential noise of tokens: E = -log1p(-v), v = (n + 1/2) * 2**-32.

    Tensors are int64 and broadcast against each other; `seed` holds the bits of the unsigned
    seed. Returns float64 of the broadcast shape, in (0, 22.9).
    """
    words = token_words(seed, position, token_ids >> 2, choice)
    lane = token_ids & 3
    word = torch.where(
        lane < 2,
        torch.where(lane == 0, words[0], words[1]),
        torch.where(lane == 2, words[2], words[3]),
    )
    return _exponential(word)


def vocabulary_exponentials(
    seed: int, position: int, choice: int, like: torch.Tensor
) -> torch.Tensor:
    """`exponentials` of the tokens 0, 1, 2, ... of `like` [vocab], on its device."""
    blocks = torch.arange(-(-len(like) // 4), device=like.device)
    words = torch.stack(token_words(seed, position, blocks, choice), -1)
    return _exponential(words.flatten()[: len(like)])


def _exponential(word: torch.Tensor) -> torch.Tensor:
    return -torch.log1p(-(word.double() + 0.5) * 2.0**-32)
