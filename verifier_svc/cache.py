"""Memory of the target's KV and of the features beside it, addressed by slot."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch

from verifier_svc.blocks import BLOCK_SIZE


class Rows(Protocol):
    """Tokens [position, position + len(tokens)) of a sequence whose position 0 is at `slot`.

    `prompt` tells those that come in pieces of any size from those of a round.
    """

    @property
    def slot(self) -> int: ...
    @property
    def position(self) -> int: ...
    @property
    def tokens(self) -> tuple[int, ...]: ...
    @property
    def prompt(self) -> bool: ...


class KVCache:
    """Keys and values per layer, each [slots, kv_heads, head_dim], and features [slots, width].

    Slots hold finite numbers from the start, since masked ones are read. Memory is really taken
    only as slots are first written. Keys and values have one slot more, `spare`: that of rows that
    only fill a batch up.
    """

    def __init__(
        self,
        *,
        blocks: int,
        layers: int,
        kv_heads: int,
        head_dim: int,
        feature_width: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        slots = self.spare = blocks * BLOCK_SIZE

        def pool(*shape: int) -> torch.Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.keys = tuple(pool(slots + 1, kv_heads, head_dim) for _ in range(layers))
        self.values = tuple(pool(slots + 1, kv_heads, head_dim) for _ in range(layers))
        self.features = pool(slots, feature_width)

    def resize_features(self, width: int) -> None:
        """Keep rows of another width from now on; what was kept is lost."""
        if width != self.features.shape[1]:
            self.features = self.features.new_empty(self.features.shape[0], width)

    @property
    def lost(self) -> bool:
        """Whether nothing can be run in it any more."""
        return False

    def writing(self, rows: Iterable[Rows]) -> AbstractContextManager[None]:
        """Around the forward that writes the KV of these rows."""
        return nullcontext()

    def copy(self, source: int, slot: int, count: int) -> None:
        """Copy KV and features of `count` slots; the two runs must not overlap."""
        for pool in (*self.keys, *self.values, self.features):
            pool[slot : slot + count] = pool[source : source + count]

    def clear(self, slot: int, count: int) -> None:
        """Make the KV of `count` slots finite again."""
        for pool in (*self.keys, *self.values):
            pool[slot : slot + count].zero_()

    @staticmethod
    def bytes_per_slot(
        layers: int, kv_heads: int, head_dim: int, feature_width: int, dtype: torch.dtype
    ) -> int:
        """Memory of one position."""
        return (2 * layers * kv_heads * head_dim + feature_width) * dtype.itemsize

    def read_features(self, slot: int, start: int, stop: int) -> torch.Tensor:
        """Features of positions [start, stop) of the sequence whose position 0 is at `slot`."""
        return self.features[slot + start : slot + stop]
