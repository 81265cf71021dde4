"""In place of a decoder and its head: what is drafted is right with a set chance."""

from __future__ import annotations

from collections.abc import Sequence as Items

import numpy as np
import torch

from speckernels import AttentionMetadata
from verifier_svc.kv.kv_cache import KVCache
from verifier_svc.model.decoder.backends import CaptureSpec

# A logit that no noise outweighs.
_SURE = 1e4


class Forward:
    """Takes no time to speak of. A state is the token that its row draws."""

    sizes = (1,)

    def __init__(self, chance: float, vocab_size: int, hidden_size: int) -> None:
        self.vocab_size = vocab_size
        self._hidden_size = hidden_size
        self._chance = chance
        self._random = np.random.default_rng(0)

    def run(
        self, rows: torch.Tensor, reach: AttentionMetadata, cache: KVCache, kept: CaptureSpec
    ) -> torch.Tensor:
        """See `Body`: a row draws the token of the row behind it, or else another."""
        wanted = np.roll(rows[0].numpy(), -1)
        wanted += self._random.random(len(wanted)) >= self._chance
        hidden = torch.zeros(len(wanted), self._hidden_size)
        hidden[:, 0] = torch.from_numpy(wanted % self.vocab_size)
        return hidden

    def score(
        self, hidden: torch.Tensor, greedy: Items[bool]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `Head`; the rows are all greedy, or none is."""
        tokens = hidden[:, 0].long()
        if all(greedy):
            return tokens, None
        logits = torch.zeros(len(tokens), self.vocab_size)
        logits[torch.arange(len(tokens)), tokens] = _SURE
        return tokens[:0], logits
