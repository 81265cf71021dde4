"""Memory of the target's KV and of the features beside it, addressed by slot."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Protocol

import torch

from speckernels.device import taking
from specserve.settings import StartError
from verifier_svc.kv.block_pool import BLOCK_SIZE


class FeatureSlots(Protocol):
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

    Slots hold finite numbers from the start, since masked ones are read. A CPU's memory is really
    taken only as slots are first written, a GPU's at once. Keys and values have one slot more,
    `spare`: that of rows that only fill a batch up.
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
        """Reserve it.

        Raises:
            StartError: a CPU's memory could never hold it, or what a GPU has left cannot.
        """
        slots = self.spare = blocks * BLOCK_SIZE
        row = self.bytes_per_slot(layers, kv_heads, head_dim, feature_width, dtype)
        if device.type == "cpu":
            _check_memory(slots * row)

        def pool(*shape: int) -> torch.Tensor:
            return _zeros(shape, dtype, device)

        with taking("--kv-memory", slots * row, device):
            self.keys = tuple(pool(slots + 1, kv_heads, head_dim) for _ in range(layers))
            self.values = tuple(pool(slots + 1, kv_heads, head_dim) for _ in range(layers))
            self.features = pool(slots, feature_width)

    def resize_features(self, width: int) -> None:
        """Keep rows of another width from now on; what was kept is lost.

        Raises:
            OutOfMemoryError: a GPU has no room for them; rows keep their width.
        """
        slots, kept = self.features.shape
        if width != kept:
            self.features = self.features.new_empty(0)  # a GPU has no room for both
            try:
                self.features = self.features.new_empty(slots, width)
            except torch.OutOfMemoryError:
                self.features = self.features.new_empty(slots, kept)
                raise

    @property
    def lost(self) -> bool:
        """Whether nothing can be run in it any more."""
        return False

    def writing(self, rows: Iterable[FeatureSlots]) -> AbstractContextManager[None]:
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


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; a CPU's take memory page by page, as they are written. torch writes its own."""
    size = prod(shape) * dtype.itemsize
    if device.type != "cpu" or not size:
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def _check_memory(size: int) -> None:
    """Refuse at the start what would otherwise end the process under load."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > there:
        raise StartError(
            f"--kv-memory: {size >> 20} MiB are more than the {there >> 20} MiB of this machine."
        )
