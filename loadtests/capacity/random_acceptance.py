"""Acceptance at a set rate, in place of what the target says. No service can be told to use it."""

from __future__ import annotations

import random
from collections.abc import Sequence as Items
from itertools import takewhile

import torch

from verifier_svc.request.sequence import Sequence
from verifier_svc.sampling.verification import Verification, verify


class RandomAcceptance:
    """Accepts each draft token with the same chance if those before it were; see `verify`.

    All rows are drawn from as ever, so that a round takes the time it takes; only which of the
    draws count is a coin's.
    """

    def __init__(self, chance: float) -> None:
        self._chance = chance
        self._random = random.Random(0)

    def seed(self, seed: int) -> None:
        """Fall as every coin of this seed does from now on."""
        self._random.seed(seed)

    def __call__(
        self, sequences: Items[Sequence], best: torch.Tensor, logits: torch.Tensor | None
    ) -> list[Verification | None]:
        """What counts of each sequence's draws: accepted draft tokens, and one more."""
        drawn = verify(sequences, best, logits)
        return [
            one and Verification([*self._accepted(sequence.draft), one.tokens[-1]])
            for sequence, one in zip(sequences, drawn, strict=True)
        ]

    def _accepted(self, draft: Items[int]) -> list[int]:
        return list(takewhile(lambda _: self._random.random() < self._chance, draft))
