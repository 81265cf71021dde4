"""A decoder on a GPU: rounds are replayed from recorded graphs, one for each size of batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch

from speckernels import (
    AttentionMetadata,
    CapturedGraph,
    CaptureFn,
    Tensors,
    VarlenTables,
    eager_capture,
    flash_refusal,
    packed_row_table,
    to_device_async,
)
from verifier_svc.kv.kv_cache import KVCache
from verifier_svc.model.decoder.attention import Scoring
from verifier_svc.model.decoder.backends import CaptureSpec, DecoderBackend

# Rows of batches as they are recorded; others are filled up. What is larger keeps a GPU busy while
# its operators are being called, so that nothing is gained by recording it.
_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# Sets of captured layers that are recorded in a cache: a graph's memory is never given back.
_LAYER_SETS = 4


def refusal(
    like: torch.Tensor, heads: int, kv_heads: int, dim: int, scorings: Sequence[Scoring]
) -> str | None:
    """Why a decoder of states like `like` cannot be recorded; None where it can."""
    # A window that hides nothing is none.
    forms = {(False, False)}
    for scoring in scorings:
        forms.add((scoring.window is not None, scoring.sinks is not None))
    given = like.device, like.dtype, heads, kv_heads, dim
    for form in sorted(forms):
        if reason := flash_refusal(*given, *form):
            return reason
    if any(scoring.softcap is not None for scoring in scorings):
        return "FlashAttention knows no soft cap: sequences attend one by one"
    return None


class _Shape(NamedTuple):
    """What differs between graphs: rows, and what is captured."""

    size: int
    layers: tuple[int, ...]


class _Graph:
    """A decoder for batches of one shape, recorded over tensors of its own.

    Each row is a segment of its own: keys are then shared among all of a GPU, and rows with drafts
    attend by the same steps as those without.
    """

    def __init__(
        self, body: DecoderBackend, width: int, record: CaptureFn, shape: _Shape, cache: KVCache
    ):
        size, spare = shape.size, cache.spare
        pool = cache.keys[0]
        self._device, self._spare = pool.device, spare
        self._filling = to_device_async([[0], [0], [spare]], pool.device)
        self._rows = rows = self._filling.repeat(1, size)
        self._table = table = to_device_async(
            packed_row_table((), size, spare), pool.device, torch.int32
        )
        self._features = pool.new_zeros(size, len(shape.layers) * width)
        starts = torch.arange(size + 1, dtype=torch.int32, device=pool.device)
        places = torch.arange(size, device=pool.device)
        kept = CaptureSpec(shape.layers, self._features, places)

        def work() -> Tensors:
            # New each time: what a reach keeps of an earlier run is not recorded.
            reach = AttentionMetadata.recorded(
                size, VarlenTables(starts, table[0], table[1, :-1], 1, spare)
            )
            return (body.run(rows, reach, cache, kept),)

        results, self._replay = record(work)
        self._hidden = results[0]

    def run(
        self, rows: torch.Tensor, reach: AttentionMetadata
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Final states and captured ones of rows [3, n], until the next run of any graph."""
        size, count = self._rows.shape[1], rows.shape[1]
        table = packed_row_table(reach.segments, size, self._spare)
        self._table.copy_(to_device_async(table, self._device, torch.int32))
        self._rows[:, :count] = rows
        self._rows[:, count:] = self._filling
        self._replay()
        return self._hidden[:count], self._features[:count]


class CudaGraphBackend:
    """A decoder on a GPU whose rounds are recorded; prompts run through `body` as they are.

    Graphs live as long as the process. There are as many as `sizes` for each set of captured
    layers, in each cache that batches without prompts have run in.
    """

    sizes: tuple[int, ...] = _SIZES

    def __init__(self, body: DecoderBackend, width: int, record: CaptureFn) -> None:
        """Take states' `width`, and what records; see `CudaGraphCapture`."""
        self._body = body
        self._width = width
        self._recording = CapturedGraph(record)
        self._graphs: WeakKeyDictionary[KVCache, dict[_Shape, _Graph]] = WeakKeyDictionary()

    @property
    def form(self) -> str:
        """See `DecoderBackend`."""
        return "graphs" if self.alive else "layers"

    @property
    def alive(self) -> bool:
        """Whether all that was to be recorded has been."""
        return self._recording.alive

    @property
    def ended(self) -> str | None:
        """Why nothing is recorded any more."""
        return self._recording.ended

    def unrecorded(self) -> CudaGraphBackend:
        """One that does the same without recording it."""
        return CudaGraphBackend(self._body, self._width, eager_capture)

    def run(
        self, rows: torch.Tensor, reach: AttentionMetadata, cache: KVCache, kept: CaptureSpec
    ) -> torch.Tensor:
        """See `DecoderBackend`. What it returns holds until the next run, in whatever cache."""
        size = next((size for size in _SIZES if size >= rows.shape[1]), None)
        graph = None
        if size is not None and not reach.prompts:
            graph = self._graph(_Shape(size, kept.layers), cache)
        if graph is None:
            return self._body.run(rows, reach, cache, kept)
        hidden, features = graph.run(rows, reach)
        if kept.layers:
            kept.features.index_copy_(0, kept.rows, features)
        return hidden

    def recapture(self, before: tuple[int, ...], layers: tuple[int, ...]) -> None:
        """Record what captures the layers `before` once more, to capture others."""
        for cache, graphs in list(self._graphs.items()):
            sizes = {shape.size for shape in graphs if shape.layers == before}
            # Large ones first: smaller ones use their memory again.
            for size in sorted(sizes, reverse=True):
                self._graph(_Shape(size, layers), cache)

    def _graph(self, shape: _Shape, cache: KVCache) -> _Graph | None:
        """The graph of a shape, recorded where it is first needed; None where that fails."""
        graphs = self._graphs.setdefault(cache, {})
        if shape not in graphs:
            sets = {recorded.layers for recorded in graphs}
            if shape.layers not in sets and len(sets) == _LAYER_SETS and self.alive:
                self._recording.end("other layers have been captured too often")
            graph = self._recording.attempt(
                lambda record: _Graph(self._body, self._width, record, shape, cache)
            )
            if graph is None:
                return None
            graphs[shape] = graph
        return graphs[shape]
