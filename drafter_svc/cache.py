"""The drafter's KV: a slab of rows for each sequence, within a memory budget.

The first rows of a slab belong to real entries, the rows behind them to the guesses of the chain
that runs; the next real rows overwrite them.
"""

from collections.abc import Set
from dataclasses import dataclass

import torch
from torch import Tensor

from drafter_svc.sequences import Key

_MIN_ROWS = 64


class CacheFullError(Exception):
    """A sequence does not fit, even with every sequence evicted that is not in use."""


@dataclass(slots=True)
class Slot:
    """What is kept of one sequence.

    ``kv`` is ``[rows, layers * 2 * kv_heads, d]``, in each layer keys first; ``hidden`` ``[H]`` is
    the last layer's output for the last real entry, from which a chain starts.
    """

    kv: Tensor
    hidden: Tensor | None = None


class KvCache:
    """Slots by key, in order of last use; those of sequences that have ended are evicted first."""

    def __init__(
        self, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device, budget: int
    ) -> None:
        """Take the shape of a row, KV heads of all layers, and the bytes that all rows may take."""
        self._row = (2 * kv_heads, head_dim)
        self._dtype, self._device = dtype, device
        self.budget_rows = budget // (2 * kv_heads * head_dim * dtype.itemsize)
        self._slots: dict[Key, Slot] = {}
        self._ended: dict[Key, None] = {}
        self._rows = 0

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def bytes_used(self) -> int:
        """Bytes of all slabs."""
        return self._rows * self._row[0] * self._row[1] * self._dtype.itemsize

    def reserve(self, key: Key, rows: int, in_use: Set[Key]) -> tuple[Slot, list[Key]]:
        """The slot of ``key``, made or grown to ``rows`` rows or more, and who was evicted for it.

        The slot counts as used now. Nobody in ``in_use`` is evicted.

        Raises:
            CacheFullError: there is no room; the slot of ``key``, if any, is as it was.
        """
        slot = self._slots.pop(key, None)
        self._ended.pop(key, None)
        if slot is not None:
            self._slots[key] = slot
            if len(slot.kv) >= rows:
                return slot, []
        held = len(slot.kv) if slot is not None else 0
        size = max(_MIN_ROWS, 1 << (rows - 1).bit_length())
        if size - held > self.budget_rows - self._rows:
            size = rows
        evicted = self._make_room(size - held, in_use | {key})
        kv = torch.empty(size, *self._row, dtype=self._dtype, device=self._device)
        self._rows += size - held
        if slot is None:
            slot = self._slots[key] = Slot(kv)
        else:
            kv[:held] = slot.kv
            slot.kv = kv
        return slot, evicted

    def copy(self, source: Key, slot: Slot, count: int) -> None:
        """Copy the first ``count`` rows of ``source``, which counts as used now, to ``slot``."""
        slot.kv[:count] = self._slots[source].kv[:count]
        self._slots[source] = self._slots.pop(source)
        if source in self._ended:
            self._ended[source] = self._ended.pop(source)

    def end(self, key: Key) -> None:
        """The sequence of ``key`` has ended: its slot goes before those of all that run."""
        if key in self._slots:
            self._ended[key] = None

    def free(self, key: Key) -> None:
        """Drop the slot of ``key``, if there is one."""
        self._ended.pop(key, None)
        slot = self._slots.pop(key, None)
        if slot is not None:
            self._rows -= len(slot.kv)

    def _make_room(self, rows: int, in_use: Set[Key]) -> list[Key]:
        """Evict in order of last use until ``rows`` more fit; nobody where that is not enough."""
        evicted: list[Key] = []
        room = self.budget_rows - self._rows
        running = (key for key in self._slots if key not in self._ended)
        for key in (*self._ended, *running):
            if room >= rows:
                break
            if key not in in_use:
                evicted.append(key)
                room += len(self._slots[key].kv)
        if room < rows:
            raise CacheFullError
        for key in evicted:
            self.free(key)
        return evicted
