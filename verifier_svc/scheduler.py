"""Which rows run in the next step. Pure: never touches the model, the wire or a clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from verifier_svc.blocks import BlockPool, blocks_for
from verifier_svc.sequence import Sequence


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
    """Continuous batching: verifying sequences first, then prompt chunks, within a budget."""

    def __init__(self, pool: BlockPool, *, max_sequences: int, token_budget: int) -> None:
        self._pool = pool
        self._max_sequences = max_sequences
        self._budget = token_budget
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
        """Give blocks to waiting sequences in order of arrival, as many as fit."""
        admitted = []
        while self._waiting and len(self._running) < self._max_sequences:
            # Blocks for the whole generation: a sequence that runs never has to give way.
            extent = self._pool.take(blocks_for(self._waiting[0].limit))
            if extent is None:
                break
            sequence = self._waiting.popleft()
            sequence.extent = extent
            self._running[sequence.id] = sequence
            admitted.append(sequence)
        return admitted

    def plan(self) -> list[Work]:
        """The rows of the next step."""
        budget = self._budget
        works = []
        decoding = [s for s in self._running.values() if s.decoding]
        prefilling = [s for s in self._running.values() if not s.decoding]
        for sequence in decoding:
            tokens = (sequence.tokens[-1], *sequence.draft)
            works.append(Work(sequence, sequence.computed, tokens, len(tokens)))
            budget -= len(tokens)
        for sequence in prefilling:
            if budget <= 0:
                break
            start = sequence.computed
            chunk = tuple(sequence.tokens[start : start + budget])
            last = start + len(chunk) == len(sequence)
            works.append(Work(sequence, start, chunk, int(last)))
            budget -= len(chunk)
        return works

    def remove(self, seqs: Iterable[int]) -> list[Sequence]:
        """Drop sequences, waiting or running; unknown ids are skipped."""
        wanted = set(seqs)
        removed = [s for s in self._waiting if s.id in wanted]
        self._waiting = deque(s for s in self._waiting if s.id not in wanted)
        for seq in wanted & self._running.keys():
            sequence = self._running.pop(seq)
            assert sequence.extent is not None
            self._pool.give(sequence.extent)
            sequence.extent = None
            removed.append(sequence)
        return removed
