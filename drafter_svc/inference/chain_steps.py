"""Where the rows of each step of a chain are, and what they attend to.

A chain starts at its last real entry, whose state its first token is drawn from. Each further step
runs one row per chain, the guess that would become the next entry.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from speckernels import AttentionMetadata, QuerySegment, VarlenTables

# Entries of one sequence from which on they take the steps of a prompt's rows, which are faster.
_MANY = 33


@dataclass(frozen=True, slots=True)
class Step:
    """A row of each of the first ``active`` chains; ``positions`` and ``slots`` are int64."""

    active: int
    positions: Tensor
    slots: Tensor
    reach: AttentionMetadata


def host_steps(
    bases: Sequence[int], slabs: Sequence[int], lengths: Sequence[int], window: int | None,
    places: Tensor,
) -> Iterator[Step]:  # fmt: skip
    """Steps of chains after ``bases`` real entries, none longer than the one before it.

    ``slabs`` is the slot of each one's position 0. ``places`` int64 ``[2, chains]`` has the last
    real positions and the slabs on the device. A chain that has ended has no further row.
    """
    for step in range(1, lengths[0]):
        active = sum(length > step for length in lengths)
        spans = [(slab, base - 1 + step, 1) for base, slab in zip(bases, slabs, strict=True)]
        positions = places[0, :active] + step
        reach = AttentionMetadata(segments_of(spans[:active], window))
        yield Step(active, positions, places[1, :active] + positions, reach)


def device_steps(places: Tensor, longest: int, window: int | None, spare: int) -> Iterator[Step]:
    """Steps of chains of which only the device knows the places, in any order.

    ``places`` int64 ``[3, chains]`` has last real positions, slabs and lengths, of which
    ``longest`` is the most. The rows of a chain that has ended run at the slot ``spare``.
    """
    last, slabs, lengths = places
    for step in range(1, longest):
        runs = lengths > step
        positions = torch.where(runs, last + step, 0)
        slots = torch.where(runs, slabs + positions, spare)
        reach = device_reach(positions, slots, window, spare)
        yield Step(places.shape[1], positions, slots, reach)


def device_reach(
    positions: Tensor, slots: Tensor, window: int | None, spare: int
) -> AttentionMetadata:
    """That of rows of which only the device knows the places, each a segment of its own.

    ``positions`` and ``slots`` are int64 ``[rows]``; those that fill a batch up are at position 0
    and at the slot ``spare``.
    """
    count = len(positions)
    rows = torch.arange(count + 1, dtype=torch.int32, device=positions.device)
    starts = (positions + 1 - (window or spare)).clamp(min=0)
    # `VarlenTables` wants one more than there are rows, of no meaning.
    keys = torch.cat([slots - positions + starts, slots[:1]]).int()
    spans = VarlenTables(rows, keys, (positions + 1 - starts).int(), 1, spare)
    return AttentionMetadata.recorded(count, spans)


def segments_of(spans: Sequence[tuple[int, int, int]], window: int | None) -> list[QuerySegment]:
    """What rows attend to: what their slab holds up to themselves.

    ``spans`` are (slab, position of the first row, rows) of one sequence after the other.
    """
    segments: list[QuerySegment] = []
    row = 0
    for slab, position, count in spans:
        if window is None:
            segments.append(QuerySegment(row, count, slab, position + 1, count >= _MANY))
        else:
            for at in range(position, position + count):
                start = max(0, at + 1 - window)
                segments.append(QuerySegment(row + at - position, 1, slab + start, at + 1 - start))
        row += count
    return segments
