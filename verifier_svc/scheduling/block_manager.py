"""Who has which blocks, what of them others may inherit, and who had better wait. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from verifier_svc.kv.block_pool import BLOCK_SIZE, BlockPool, BlockRange, blocks_for
from verifier_svc.kv.prefix_tree import PrefixTree
from verifier_svc.request.sequence import PrefixHit, Sequence


class BlockManager:
    """Blocks of running sequences, and of ended ones for prompts that begin alike.

    The latter are given up, the least recently used first, before a sequence has to wait.
    """

    def __init__(self, pool: BlockPool, *, keep: bool) -> None:
        """Take the pool; `keep` is whether prefixes are reused."""
        self._pool = pool
        self._keep = keep
        self._running: dict[int, Sequence] = {}
        self._prefixes = PrefixTree()
        # Full blocks of sequences that have ended, in order of last use.
        self._kept: dict[int, BlockRange] = {}
        # What running sequences have of their prompts, computed or not, until they decode.
        self._coming = PrefixTree()
        # Sequences that had better wait on: for whom, and for how many of its positions.
        self._held: dict[int, tuple[int, int]] = {}

    @property
    def running(self) -> Mapping[int, Sequence]:
        """Sequences with blocks by id, oldest first."""
        return self._running

    def fits(self, tokens: int) -> bool:
        """Whether a sequence of `tokens` could ever have its blocks."""
        return blocks_for(tokens) <= self._pool.blocks

    def find(self, sequence: Sequence) -> tuple[int, int] | None:
        """(holder, length) of the longest prefix that a sequence may inherit; None for none."""
        # The last token is always run: the first draw needs its logits.
        return self._prefixes.find(sequence.salt, sequence.tokens[:-1])

    def awaits(self, sequence: Sequence) -> bool:
        """Whether a running prompt is about to compute more than a block of what it shares.

        It does so in any case, so that nobody waits for ever; if it goes, the wait is over.
        """
        held = self._held.pop(sequence.id, None)
        if held is None or not self._computes(*held):
            found = self.find(sequence)
            held = self._coming.find(sequence.salt, sequence.tokens[:-1])
            if held is None or held[1] - (found[1] if found else 0) <= BLOCK_SIZE:
                return False
        self._held[sequence.id] = held
        return True

    def admit(self, sequence: Sequence, sources: set[int]) -> bool:
        """Give a sequence its blocks and what it inherits; False where they cannot be had.

        `sources` are sequences whose blocks must stay; one that it inherits from is added.
        """
        found = self.find(sequence)
        # Blocks for the whole generation: a sequence that runs never has to give way.
        blocks = blocks_for(sequence.limit)
        extent = self._take(blocks, sources | {found[0]}) if found else None
        extent = extent or self._take(blocks, sources)
        if extent is None:
            return False
        sequence.extent = extent
        if found and found[0] in self._prefixes:
            source, count = found
            sequence.inherit(PrefixHit(source, self._slot(source), count))
            sources.add(source)
        self._running[sequence.id] = sequence
        if self._keep:
            self._coming.extend(sequence.id, sequence.salt, sequence.tokens, len(sequence))
        return True

    def remember(self) -> None:
        """Take note of what running sequences have computed by now."""
        for sequence in self._running.values():
            self._remember(sequence)

    def forget(self) -> None:
        """Nothing that was computed so far may be inherited any more."""
        for seq in tuple(self._kept):
            self._evict(seq)
        for sequence in self._running.values():
            self._prefixes.drop(sequence.id)
            self._coming.drop(sequence.id)
            sequence.heritable = False

    def end(self, sequence: Sequence, *, failed: bool) -> None:
        """Take the blocks of a sequence back, or its wait; keep what it computed.

        Nothing is kept of one that `failed`.
        """
        self._held.pop(sequence.id, None)
        if self._running.pop(sequence.id, None) is None:
            return
        self._coming.drop(sequence.id)
        if not failed:
            self._remember(sequence)
        self._release(sequence)

    def _computes(self, source: int, count: int) -> bool:
        """Whether a prompt is being run, and its first `count` positions not all have been."""
        return source in self._coming and self._running[source].computed < count

    def _remember(self, sequence: Sequence) -> None:
        if self._keep and sequence.heritable:
            tokens = sequence.tokens
            computed = min(sequence.computed, len(tokens))
            self._prefixes.extend(sequence.id, sequence.salt, tokens, computed)
            if sequence.decoding:
                self._coming.drop(sequence.id)

    def _release(self, sequence: Sequence) -> None:
        """Keep the blocks that others may inherit, and give the others back."""
        extent, sequence.extent = sequence.extent, None
        assert extent is not None
        covered = self._prefixes.covered(sequence.id)
        count = 0 if covered else self._prefixes.length(sequence.id) // BLOCK_SIZE
        if count:
            self._kept[sequence.id] = BlockRange(extent.start, count)
            for other in [seq for seq in self._kept if seq != sequence.id]:
                if self._prefixes.covered(other):
                    self._evict(other)
        else:
            self._prefixes.drop(sequence.id)
        if count < extent.count:
            self._pool.give(BlockRange(extent.start + count, extent.count - count))

    def _take(self, count: int, protected: set[int]) -> BlockRange | None:
        """A run of blocks, at the expense of what is kept where it must be."""
        while (extent := self._pool.take(count)) is None:
            victim = next((seq for seq in self._kept if seq not in protected), None)
            if victim is None:
                return None
            self._evict(victim)
        return extent

    def _evict(self, seq: int) -> None:
        self._prefixes.drop(seq)
        self._pool.give(self._kept.pop(seq))

    def _slot(self, source: int) -> int:
        """Where a source's position 0 is; it counts as used now."""
        if source in self._running:
            return self._running[source].slot
        self._kept[source] = extent = self._kept.pop(source)
        return extent.slot
