"""Accounting of KV blocks. Pure: numbers only; memory is in `verifier_svc.kv.kv_cache`."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True, order=True)
class BlockRange:
    """Blocks [start, start + count)."""

    start: int
    count: int

    @property
    def slot(self) -> int:
        """The first slot; one slot holds the KV of one position."""
        return self.start * BLOCK_SIZE


def blocks_for(tokens: int) -> int:
    """Blocks that hold `tokens` positions."""
    return -(-tokens // BLOCK_SIZE)


class BlockPool:
    """Hands out runs of adjacent blocks, first fit, and merges what comes back.

    A sequence's blocks are adjacent so that attention reads its keys in place on every device.
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._free = [BlockRange(0, blocks)]

    @property
    def free_blocks(self) -> int:
        """Blocks that no sequence owns."""
        return sum(extent.count for extent in self._free)

    def take(self, count: int) -> BlockRange | None:
        """A run of `count` blocks, or None where no free run is that long."""
        for index, extent in enumerate(self._free):
            if extent.count >= count:
                if extent.count == count:
                    del self._free[index]
                else:
                    self._free[index] = BlockRange(extent.start + count, extent.count - count)
                return BlockRange(extent.start, count)
        return None

    def give(self, extent: BlockRange) -> None:
        """Take a run back.

        Raises:
            ValueError: some of its blocks are free already.
        """
        at = bisect_left(self._free, extent)
        before = self._free[at - 1] if at else BlockRange(0, 0)
        after = self._free[at] if at < len(self._free) else BlockRange(self.blocks, 0)
        if before.start + before.count > extent.start or extent.start + extent.count > after.start:
            raise ValueError(f"{extent} overlaps free blocks.")
        start, stop = extent.start, extent.start + extent.count
        if before.count and before.start + before.count == start:
            self._free.remove(before)
            start = before.start
        if after.count and after.start == stop:
            self._free.remove(after)
            stop = after.start + after.count
        insort(self._free, BlockRange(start, stop - start))
