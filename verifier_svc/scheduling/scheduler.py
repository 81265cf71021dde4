"""Which rows run in the next step. Pure: never touches the model, the wire or a clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from typing import NamedTuple

from verifier_svc.kv.block_pool import BlockPool
from verifier_svc.request.sequence import Sequence
from verifier_svc.scheduling.block_manager import BlockManager
from verifier_svc.scheduling.prefill_budget import PrefillBudget


class ScheduledRows(NamedTuple):
    """Rows of one sequence: its tokens [position, position + count), drafts included.

    `draws` of the last rows have their logits drawn from; 0 in the middle of a `prompt`.
    """

    sequence: Sequence
    position: int
    tokens: tuple[int, ...]
    draws: int
    prompt: bool = False

    @property
    def slot(self) -> int:
        """The cache slot of the sequence's position 0."""
        return self.sequence.slot


class Scheduler:
    """Continuous batching: verifying sequences first, then prompt chunks in order of arrival."""

    def __init__(
        self, pool: BlockPool, *, max_sequences: int, pace: PrefillBudget, keep: bool = True
    ) -> None:
        """Take the pool and the pace of prompts; `keep` is whether prefixes are reused."""
        self._holdings = BlockManager(pool, keep=keep)
        self._max_sequences = max_sequences
        self._pace = pace
        self._waiting: deque[Sequence] = deque()

    @property
    def waiting(self) -> int:
        """Sequences without blocks."""
        return len(self._waiting)

    @property
    def running(self) -> tuple[Sequence, ...]:
        """Sequences with blocks, oldest first."""
        return tuple(self._holdings.running.values())

    def fits(self, tokens: int) -> bool:
        """Whether a sequence of `tokens` could ever be admitted."""
        return self._holdings.fits(tokens)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self._waiting.append(sequence)

    def admit(self) -> list[Sequence]:
        """Give blocks to waiting sequences in order of arrival, as many as fit.

        One whose prefix a running prompt is about to compute waits for it, and others pass it.
        What a sequence inherits must be copied before anything else happens here.
        """
        if not self._waiting:
            return []
        admitted: list[Sequence] = []
        sources: set[int] = set()
        self._holdings.remember()
        for sequence in tuple(self._waiting):
            if len(self._holdings.running) >= self._max_sequences:
                break
            if self._holdings.awaits(sequence):
                continue
            if not self._holdings.admit(sequence, sources):
                break
            self._waiting.remove(sequence)
            admitted.append(sequence)
        return admitted

    def forget_prefixes(self) -> None:
        """Nothing that was computed so far may be inherited any more."""
        self._holdings.forget()

    def plan(self, resting: Collection[int] = ()) -> list[ScheduledRows]:
        """The rows of the next step, which the decoding sequences `resting` sit out."""
        works: list[ScheduledRows] = []
        decoding, prefilling = 0, []
        for sequence in self._holdings.running.values():
            if not sequence.decoding:
                prefilling.append(sequence)
                continue
            decoding += 1
            if sequence.id not in resting:
                tokens = (sequence.tokens[-1], *sequence.draft)
                works.append(ScheduledRows(sequence, sequence.computed, tokens, len(tokens)))
        rows = sum(work.draws for work in works)
        left = self._pace.prompt_rows(rows, decoding, [s.prefill for s in prefilling])
        for sequence in prefilling:
            if left <= 0:
                break
            start = sequence.computed
            chunk = tuple(sequence.tokens[start : start + left])
            last = start + len(chunk) == len(sequence)
            works.append(ScheduledRows(sequence, start, chunk, int(last), prompt=True))
            left -= len(chunk)
        return works

    def remove(self, seqs: Iterable[int], *, failed: bool = False) -> list[Sequence]:
        """Drop sequences, waiting or running; unknown ids are skipped.

        What they computed is kept for others, unless they `failed`.
        """
        wanted = set(seqs)
        if not wanted:
            return []
        removed = [s for s in (*self._waiting, *self.running) if s.id in wanted]
        self._waiting = deque(s for s in self._waiting if s.id not in wanted)
        for sequence in removed:
            self._holdings.end(sequence, failed=failed)
        return removed
