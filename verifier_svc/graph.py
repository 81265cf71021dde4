"""A decoder on a GPU: rounds are replayed from recorded graphs, one for each size of batch."""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch

from specwire.kernels import (
    Reach,
    Record,
    Recorder,
    Recording,
    Spans,
    called,
    flash_serves,
    put,
    span_table,
)
from verifier_svc.body import Body, Kept
from verifier_svc.cache import KVCache

# Rows of batches as they are recorded; others are filled up. What is larger keeps a GPU busy while
# its operators are being called, so that nothing is gained by recording it.
_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
# Rows of a sequence at most, in a recorded batch: a draft and the row before it.
_LONGEST = 16


class _Shape(NamedTuple):
    """What differs between graphs: rows, those of a sequence at most, and what is captured."""

    size: int
    longest: int
    layers: tuple[int, ...]


class _Graph:
    """A decoder for batches of one shape, recorded over tensors of its own."""

    def __init__(self, body: Body, width: int, record: Record, shape: _Shape, cache: KVCache):
        size, self._spare = shape.size, cache.spare
        pool = cache.keys[0]
        self._device = pool.device
        self._filling = put([[0], [0], [cache.spare]], pool.device)
        self._rows = self._filling.repeat(1, size)
        self._table = put(span_table((), size, size, cache.spare), pool.device, torch.int32)
        self._features = pool.new_zeros(size, len(shape.layers) * width)
        reach = Reach.recorded(size, Spans.of(self._table, shape.longest, cache.spare))
        places = torch.arange(size, device=pool.device)
        kept = Kept(shape.layers, self._features, places)
        results, self._replay = record(lambda: (body.run(self._rows, reach, cache, kept),))
        self._hidden = results[0]

    def run(self, rows: torch.Tensor, reach: Reach) -> tuple[torch.Tensor, torch.Tensor]:
        """Final states and captured ones of rows [3, n], until the next run of any graph."""
        size, count = self._rows.shape[1], rows.shape[1]
        table = span_table(reach.segments, size, size, self._spare)
        self._table.copy_(put(table, self._device, torch.int32))
        self._rows[:, :count] = rows
        self._rows[:, count:] = self._filling
        self._replay()
        return self._hidden[:count], self._features[:count]


class GraphBody:
    """A decoder on a GPU whose rounds are recorded; prompts run through `body` as they are."""

    sizes: tuple[int, ...] = _SIZES

    def __init__(self, body: Body, width: int, record: Record) -> None:
        """Take states' `width`, and what records; see `Recorder`."""
        self._body = body
        self._width = width
        self._recording = Recording(record)
        self._graphs: WeakKeyDictionary[KVCache, dict[_Shape, _Graph]] = WeakKeyDictionary()

    @classmethod
    def of(
        cls, body: Body, like: torch.Tensor, heads: int, kv_heads: int, dim: int
    ) -> GraphBody | None:
        """The form of a decoder of states like `like`; None where it cannot be recorded."""
        if not flash_serves(like.device, like.dtype, heads, kv_heads, dim):
            return None
        return cls(body, like.shape[-1], Recorder())

    def unrecorded(self) -> GraphBody:
        """One that does the same without recording it."""
        return GraphBody(self._body, self._width, called)

    def run(self, rows: torch.Tensor, reach: Reach, cache: KVCache, kept: Kept) -> torch.Tensor:
        """See `Body`. What it returns holds until the next run."""
        size = next((size for size in _SIZES if size >= rows.shape[1]), None)
        graph = None
        if size is not None and reach.longest <= _LONGEST:
            # Decoding without drafts has an attention of its own.
            longest = 1 if reach.longest == 1 else _LONGEST
            graph = self._graph(_Shape(size, longest, kept.layers), cache)
        if graph is None:
            return self._body.run(rows, reach, cache, kept)
        hidden, features = graph.run(rows, reach)
        if kept.layers:
            kept.features.index_copy_(0, kept.rows, features)
        return hidden

    def _graph(self, shape: _Shape, cache: KVCache) -> _Graph | None:
        """The graph of a shape, recorded where it is first needed; None where that fails."""
        graphs = self._graphs.setdefault(cache, {})
        if shape not in graphs:
            graph = self._recording.attempt(
                lambda record: _Graph(self._body, self._width, record, shape, cache)
            )
            if graph is None:
                return None
            graphs[shape] = graph
        return graphs[shape]
