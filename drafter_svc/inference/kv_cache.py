"""The drafter's KV: one pool of rows within a memory budget, a slab of it for each sequence.

The first rows of a slab belong to real entries, the rows behind them to the guesses of the chain
that runs; the next real rows overwrite them. One pool, so that one operator attends for all.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass

import torch

from drafter_svc.inference.row_numbers import RowNumbers
from drafter_svc.inference.sequence_key import Key

_MIN_ROWS = 64


class CacheFullError(Exception):
    """A sequence does not fit, even with every sequence evicted that is not in use."""


@dataclass(slots=True)
class Slab:
    """What is kept of one sequence: the pool's rows [start, start + rows), and a state.

    The state is the row ``number`` of `States`; it is ``ready`` once it is that of the last real
    entry, so that a chain can start. A reservation, of whatever sequence, may move ``start``.
    """

    start: int
    rows: int
    number: int
    ready: bool = False


class KVCache:
    """Slots by key, in order of last use; those of sequences that have ended are evicted first.

    ``keys`` and ``values`` hold ``[budget_rows + 1, kv_heads, d]`` for each layer; the last row,
    ``spare``, is that of chains that only fill a batch up.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        budget: int,
    ) -> None:
        """Take the shape of a row, and the bytes that all rows may take."""
        self._row_bytes = 2 * layers * kv_heads * head_dim * dtype.itemsize
        self.budget_rows = self.spare = budget // self._row_bytes
        # A CPU's memory is really taken only as rows are first written.
        self.keys, self.values = (
            tuple(
                torch.empty(self.spare + 1, kv_heads, head_dim, dtype=dtype, device=device)
                for _ in range(layers)
            )
            for _ in range(2)
        )
        self._slots: dict[Key, Slab] = {}
        self._ended: dict[Key, None] = {}
        self._numbers = RowNumbers()
        self._rows = 0

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def bytes_used(self) -> int:
        """Bytes of all slabs."""
        return self._rows * self._row_bytes

    def reserve(self, key: Key, rows: int, in_use: Set[Key]) -> tuple[Slab, list[Key]]:
        """The slot of ``key``, made or grown to ``rows`` rows or more, and who was evicted for it.

        The slot counts as used now. Nobody in ``in_use`` is evicted.

        Raises:
            CacheFullError: there is no room; the slot of ``key``, if any, is as it was.
        """
        slot = self._slots.pop(key, None)
        self._ended.pop(key, None)
        if slot is not None:
            self._slots[key] = slot
            if slot.rows >= rows:
                return slot, []
        held = slot.rows if slot is not None else 0
        size = max(_MIN_ROWS, 1 << (rows - 1).bit_length())
        if size - held > self.budget_rows - self._rows:
            size = rows
        evicted = self._make_room(size - held, in_use | {key})
        if slot is None:
            slot = self._slots[key] = Slab(0, 0, self._numbers.take())
        self._grow(slot, size)
        self._rows += size - held
        return slot, evicted

    def copy(self, source: Key, slot: Slab, count: int) -> None:
        """Copy the first ``count`` rows of ``source``, which counts as used now, to ``slot``."""
        self._move(self._slots[source].start, slot.start, count)
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
            self._rows -= slot.rows
            self._numbers.give(slot.number)

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
                room += self._slots[key].rows
        if room < rows:
            raise CacheFullError
        for key in evicted:
            self.free(key)
        return evicted

    def _grow(self, slot: Slab, size: int) -> None:
        """Give ``slot`` as many rows as ``size``, which are free, if not in one piece."""
        others = sorted(
            (other for other in self._slots.values() if other is not slot),
            key=lambda other: other.start,
        )
        ends = [0, *(other.start + other.rows for other in others)]
        starts = [*(other.start for other in others), self.budget_rows]
        behind = min((start for start in starts if start >= slot.start), default=0)
        if not slot.rows or slot.start + size > behind:
            fits = (end for end, start in zip(ends, starts, strict=True) if start - end >= size)
            start = next(fits, None)
            if start is None:
                start = self._compact(others, slot)
            else:
                self._move(slot.start, start, slot.rows)
            slot.start = start
        slot.rows = size

    def _compact(self, others: Sequence[Slab], last: Slab) -> int:
        """Close the gaps between slots; returns where ``last`` now is, behind all others."""
        pools = (*self.keys, *self.values)
        saved = [pool[last.start : last.start + last.rows].clone() for pool in pools]
        end = 0
        for slot in others:
            self._move(slot.start, end, slot.rows)
            slot.start = end
            end += slot.rows
        for pool, rows in zip(pools, saved, strict=True):
            pool[end : end + last.rows] = rows
        return end

    def _move(self, source: int, target: int, count: int) -> None:
        """Copy rows, which may overlap."""
        if source != target and count:
            for pool in (*self.keys, *self.values):
                pool[target : target + count] = pool[source : source + count].clone()
