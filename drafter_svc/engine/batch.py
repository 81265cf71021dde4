"""What is gathered from messages until it runs in one go."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from drafter_svc.engine.sequences import DrafterSequence
from drafter_svc.inference.entry_forward import EntryRows
from drafter_svc.inference.kv_cache import Slab
from drafter_svc.inference.sequence_key import Key


@dataclass(frozen=True, slots=True)
class Staged:
    """New entries of a sequence; their features are those of a message from row ``at`` on."""

    held: DrafterSequence
    rows: EntryRows
    features: Tensor
    at: int


@dataclass(slots=True)
class Batch:
    """Entries and wishes of many sequences, of which nobody in ``in_use`` may be evicted.

    ``unchecked`` are entries that run, with the sum of each one's features, fp32 on the CPU.
    """

    in_use: set[Key]
    way: Literal["round", "bulk"]
    staged: list[Staged] = field(default_factory=list)
    unchecked: list[tuple[list[Staged], Tensor]] = field(default_factory=list)
    slots: dict[Key, Slab] = field(default_factory=dict)
    wishes: dict[Key, tuple[DrafterSequence, int]] = field(default_factory=dict)

    def take_staged(self) -> list[Staged]:
        """What is staged of sequences that are still served; nothing is staged any more."""
        staged = [entries for entries in self.staged if not entries.held.refused]
        self.staged.clear()
        return staged

    def not_finite(self) -> Iterator[DrafterSequence]:
        """Sequences with features that are not finite, possibly several times.

        The device has been waited for; all that ran counts as checked from now on.
        """
        for staged, sums in self.unchecked:
            known: list[float] = sums.tolist()
            if math.isfinite(sum(known)):
                continue
            at = 0
            for entries in staged:
                count = len(entries.rows.tokens)
                if not math.isfinite(sum(known[at : at + count])):
                    yield entries.held
                at += count
        self.unchecked.clear()


def pieces_of(staged: Sequence[Staged]) -> list[Tensor]:
    """The features of entries in order, those that lie side by side in one piece."""
    pieces: list[tuple[Tensor, int, int]] = []
    for entries in staged:
        start, stop = entries.at, entries.at + len(entries.rows.tokens)
        if pieces and pieces[-1][0] is entries.features and pieces[-1][2] == start:
            start = pieces.pop()[1]
        pieces.append((entries.features, start, stop))
    return [features[start:stop] for features, start, stop in pieces]
