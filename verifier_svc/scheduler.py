"""Which rows run in the next step. Pure: never touches the model, the wire or a clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from verifier_svc.blocks import BLOCK_SIZE, BlockPool, Extent, blocks_for
from verifier_svc.pace import Pace
from verifier_svc.prefixes import Prefixes
from verifier_svc.sequence import Inherited, Sequence


@dataclass(frozen=True, slots=True)
class Work:
    """Rows of one sequence: its tokens [position, position + count), drafts included.

    `draws` of the last rows have their logits drawn from; 0 in the middle of a prompt.
    """

    sequence: Sequence
    position: int
    tokens: tuple[int, ...]
    draws: int

    @property
    def slot(self) -> int:
        """The cache slot of the sequence's position 0."""
        return self.sequence.slot


class Scheduler:
    """Continuous batching: verifying sequences first, then prompt chunks in order of arrival.

    Blocks of sequences that have ended are kept for prompts that begin alike, and given up, the
    least recently used first, before a sequence has to wait.
    """

    def __init__(
        self, pool: BlockPool, *, max_sequences: int, pace: Pace, keep: bool = True
    ) -> None:
        """Take the pool and the pace of prompts; `keep` is whether prefixes are reused."""
        self._pool = pool
        self._keep = keep
        self._prefixes = Prefixes()
        # Full blocks of sequences that have ended, in order of last use.
        self._kept: dict[int, Extent] = {}
        self._max_sequences = max_sequences
        self._pace = pace
        # What running sequences have of their prompts, computed or not, until they decode.
        self._coming = Prefixes()
        # Waiting sequences that had better wait on: for whom, and for how many of its positions.
        self._held: dict[int, tuple[int, int]] = {}
        self._waiting: deque[Sequence] = deque()
        self._running: dict[int, Sequence] = {}

    @property
    def waiting(self) -> int:
        """Sequences without blocks."""
        return len(self._waiting)

    @property
    def running(self) -> tuple[Sequence, ...]:
        """Sequences with blocks, oldest first."""
        return tuple(self._running.values())

    def fits(self, tokens: int) -> bool:
        """Whether a sequence of `tokens` could ever be admitted."""
        return blocks_for(tokens) <= self._pool.blocks

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self._waiting.append(sequence)

    def admit(self) -> list[Sequence]:
        """Give blocks to waiting sequences in order of arrival, as many as fit.

        One whose prefix a running prompt is about to compute waits for it, and others pass it.
        What a sequence inherits must be copied before anything else happens here.
        """
        admitted: list[Sequence] = []
        sources: set[int] = set()
        for sequence in self._running.values():
            self._remember(sequence)
        for sequence in tuple(self._waiting):
            if len(self._running) >= self._max_sequences:
                break
            if self._holds(sequence):
                continue
            found = self._find(sequence)
            # Blocks for the whole generation: a sequence that runs never has to give way.
            blocks = blocks_for(sequence.limit)
            extent = self._take(blocks, sources | {found[0]}) if found else None
            extent = extent or self._take(blocks, sources)
            if extent is None:
                break
            self._waiting.remove(sequence)
            sequence.extent = extent
            if found and found[0] in self._prefixes:
                source, count = found
                sequence.inherit(Inherited(source, self._slot(source), count))
                sources.add(source)
            self._running[sequence.id] = sequence
            if self._keep:
                self._coming.extend(sequence.id, sequence.salt, sequence.tokens, len(sequence))
            admitted.append(sequence)
        return admitted

    def forget_prefixes(self) -> None:
        """Nothing that was computed so far may be inherited any more."""
        for seq in tuple(self._kept):
            self._evict(seq)
        for sequence in self._running.values():
            self._prefixes.drop(sequence.id)
            self._coming.drop(sequence.id)
            sequence.heritable = False

    def plan(self) -> list[Work]:
        """The rows of the next step."""
        works = []
        decoding = [s for s in self._running.values() if s.decoding]
        prefilling = [s for s in self._running.values() if not s.decoding]
        for sequence in decoding:
            tokens = (sequence.tokens[-1], *sequence.draft)
            works.append(Work(sequence, sequence.computed, tokens, len(tokens)))
        rows = sum(work.draws for work in works)
        left = self._pace.prompt_rows(rows, len(decoding), len(prefilling))
        for sequence in prefilling:
            if left <= 0:
                break
            start = sequence.computed
            chunk = tuple(sequence.tokens[start : start + left])
            last = start + len(chunk) == len(sequence)
            works.append(Work(sequence, start, chunk, int(last)))
            left -= len(chunk)
        return works

    def remove(self, seqs: Iterable[int], *, failed: bool = False) -> list[Sequence]:
        """Drop sequences, waiting or running; unknown ids are skipped.

        What they computed is kept for others, unless they `failed`.
        """
        wanted = set(seqs)
        removed = [s for s in self._waiting if s.id in wanted]
        for seq in wanted & self._held.keys():
            del self._held[seq]
        self._waiting = deque(s for s in self._waiting if s.id not in wanted)
        for seq in wanted & self._running.keys():
            sequence = self._running.pop(seq)
            self._coming.drop(seq)
            if not failed:
                self._remember(sequence)
            self._release(sequence)
            removed.append(sequence)
        return removed

    def _find(self, sequence: Sequence) -> tuple[int, int] | None:
        # The last token is always run: the first draw needs its logits.
        return self._prefixes.find(sequence.salt, sequence.tokens[:-1])

    def _holds(self, sequence: Sequence) -> bool:
        """Whether a running prompt is about to compute more than a block of what it shares.

        It does so in any case, so that nobody waits for ever; if it goes, the wait is over.
        """
        held = self._held.pop(sequence.id, None)
        if held is None or not self._computes(*held):
            found = self._find(sequence)
            held = self._coming.find(sequence.salt, sequence.tokens[:-1])
            if held is None or held[1] - (found[1] if found else 0) <= BLOCK_SIZE:
                return False
        self._held[sequence.id] = held
        return True

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
            self._kept[sequence.id] = Extent(extent.start, count)
            for other in [seq for seq in self._kept if seq != sequence.id]:
                if self._prefixes.covered(other):
                    self._evict(other)
        else:
            self._prefixes.drop(sequence.id)
        if count < extent.count:
            self._pool.give(Extent(extent.start + count, extent.count - count))

    def _take(self, count: int, protected: set[int]) -> Extent | None:
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
