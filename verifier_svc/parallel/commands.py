"""What rank 0 tells the other ranks to do. Pure: numbers only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reserve:
    """Make the next cache."""

    blocks: int


@dataclass(frozen=True, slots=True)
class Run:
    """Run rows (slot of position 0, position, tokens, prompt) in a cache, by its number."""

    cache: int
    rows: tuple[tuple[int, int, tuple[int, ...], bool], ...]


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy `count` slots of a cache."""

    cache: int
    source: int
    slot: int
    count: int


@dataclass(frozen=True, slots=True)
class Clear:
    """Zero `count` slots of a cache."""

    cache: int
    slot: int
    count: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End."""


Order = Reserve | Run | Copy | Clear | Stop
