"""Real entries: rows with features, run for their keys, values and the last state of each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import speckernels as kernels
from drafter_svc.inference.attention import Attention
from drafter_svc.inference.chain_states import ChainStates
from drafter_svc.inference.chain_steps import device_reach, segments_of
from drafter_svc.inference.cuda_graphs import CudaGraphs, least
from drafter_svc.inference.fused_model import FusedDrafter
from drafter_svc.inference.kv_cache import KVCache, Slab
from speckernels import AttentionMetadata, CapturedGraph, to_device_async
from speckernels.cuda_graph import Tensors

# Rows of a batch as it is recorded; others are filled up, and larger ones cut. As many as chains,
# of four rows each.
_SIZES = (4, 8, 16, 32, 64, 128, 256)
# Rows of a recorded batch, and the width of its features: captured ones, or projected.
_Shape = tuple[int, int]
# How far a recorded batch's states may be from what they must be, of their own size.
_ROUNDING = 0.02


@dataclass(frozen=True, slots=True)
class EntryRows:
    """Real entries [start, start + len(tokens)) of one sequence, its slab large enough."""

    slot: Slab
    start: int
    tokens: Sequence[int]


class EntryForward:
    """Runs real entries. All calls come from one thread."""

    def __init__(
        self,
        drafter: FusedDrafter,
        whole: kernels.EagleKernel | None,
        cache: KVCache,
        states: ChainStates,
        recording: CapturedGraph | None,
    ) -> None:
        """Take the drafter, its form as one kernel if it has one, and what records its work."""
        self._drafter = drafter
        self._whole = whole
        self._cache = cache
        self._states = states
        self._scale = drafter.config.head_dim**-0.5
        self._window = drafter.config.sliding_window
        self._graphs: CudaGraphs[_Shape] | None = None
        if recording is not None:
            self._graphs = CudaGraphs(self._on_device, self._idle, _same, recording)
            self._filling = self.zeros(_SIZES[-1])

    @property
    def recorded(self) -> int:
        """Graphs there are."""
        return 0 if self._graphs is None else len(self._graphs)

    def zeros(self, rows: int, width: int | None = None) -> Tensor:
        """See `Chain.zeros`."""
        config = self._drafter.config
        width = width or config.target_hidden_size * len(config.aux_layers)
        return torch.zeros(rows, width, dtype=self._drafter.dtype, device=self._drafter.device)

    def append(
        self, batch: Sequence[EntryRows], features: Sequence[Tensor], *, keys_only: bool
    ) -> Tensor:
        """See `Chain.append`."""
        tokens = [token for rows in batch for token in rows.tokens]
        positions = [rows.start + i for rows in batch for i in range(len(rows.tokens))]
        slots = [
            rows.slot.start + rows.start + i for rows in batch for i in range(len(rows.tokens))
        ]
        numbers = [tokens, positions, slots]
        if len({piece.shape[1] for piece in features}) > 1:
            # Some verifiers have projected theirs.
            features = [self._drafter.fuse(piece) for piece in features]
        if keys_only:
            sums = self._keep(batch, numbers, _joined(features))
        else:
            hidden, sums = self._run(batch, numbers, features)
            at, last = 0, {}
            for rows in batch:
                at += len(rows.tokens)
                last[rows.slot.number] = at - 1
            self._states.keep(hidden, last)
        for rows in batch:
            rows.slot.ready = not keys_only
        return sums[: len(tokens)].to("cpu", non_blocking=True)

    def _run(
        self, batch: Sequence[EntryRows], numbers: list[list[int]], features: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """What leaves the layer ``[n, H]``, and the sums ``[n]``; possibly of more rows behind."""
        if (ran := self._replayed(numbers, features)) is not None:
            return ran
        count = len(numbers[0])
        rows, given = to_device_async(numbers, self._drafter.device), _joined(features)
        reach = self._reach(batch)
        if self._whole is not None:
            hidden = given.new_empty(count, self._drafter.config.hidden_size)
            kv = self._cache.keys[0], self._cache.values[0]
            if self._whole.append(given, rows, reach, *kv, hidden):
                return hidden, _sums(given)
        return self._layer(given, rows, reach), _sums(given)

    def _replayed(
        self, numbers: list[list[int]], features: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor] | None:
        """See `_run`; None where it cannot be recorded."""
        if self._graphs is None:
            return None
        count, most = len(numbers[0]), _SIZES[-1]
        if count <= most:
            return self._replay(self._graphs, numbers, features)
        given, left = _joined(features), []
        # Rows see what those before them have kept by then.
        for at in range(0, count, most):
            group = [some[at : at + most] for some in numbers]
            if (ran := self._replay(self._graphs, group, [given[at : at + most]])) is None:
                return None
            # They hold until the next replay.
            left.append([tensor.clone() for tensor in ran])
        hidden, sums = (torch.cat(parts) for parts in zip(*left, strict=True))
        return hidden, sums

    def _replay(
        self, graphs: CudaGraphs[_Shape], numbers: list[list[int]], features: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor] | None:
        """See `_run`, of the rows of one graph; None where it cannot be recorded."""
        count, width = len(numbers[0]), features[0].shape[1]
        size = least(_SIZES, count) or count
        pieces = [*features, self._filling[: size - count, :width]] if size > count else features
        filling = (0, 0, self._cache.spare)
        filled = [n + [f] * (size - count) for n, f in zip(numbers, filling, strict=True)]
        ran = graphs.run(
            (size, width), (_joined(pieces), to_device_async(filled, self._drafter.device))
        )
        return None if ran is None else (ran[0], ran[1])

    def _keep(
        self, batch: Sequence[EntryRows], numbers: list[list[int]], features: Tensor
    ) -> Tensor:
        """Only keep keys and values; returns the sums ``[n]``."""
        rows, reach = to_device_async(numbers, self._drafter.device), self._reach(batch)
        kv = self._cache.keys[0], self._cache.values[0]
        if self._whole is None or not self._whole.append(features, rows, reach, *kv, None):
            attention = Attention(self._cache, rows[2], reach, self._scale)
            self._drafter.keep(rows[0], self._drafter.fuse(features), rows[1], attention)
        return _sums(features)

    def _reach(self, batch: Sequence[EntryRows]) -> AttentionMetadata:
        spans = [(rows.slot.start, rows.start, len(rows.tokens)) for rows in batch]
        return AttentionMetadata(segments_of(spans, self._window))

    def _on_device(self, shape: _Shape, inputs: Tensors) -> Tensors:
        """What `_run` does, without a wait for the device: work that can be recorded."""
        features, rows = inputs
        reach = device_reach(rows[1], rows[2], self._window, self._cache.spare)
        return self._layer(features, rows, reach), _sums(features)

    def _idle(self, inputs: Tensors) -> Tensors:
        """Rows that only fill a batch up."""
        features, rows = (torch.zeros_like(tensor) for tensor in inputs)
        rows[2] = self._cache.spare
        return features, rows

    def _layer(self, features: Tensor, rows: Tensor, reach: AttentionMetadata) -> Tensor:
        attention = Attention(self._cache, rows[2], reach, self._scale)
        return self._drafter.layer(rows[0], self._drafter.fuse(features), rows[1], attention)


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))


def _sums(features: Tensor) -> Tensor:
    return features.sum(-1, dtype=torch.float32)


def _same(got: Tensors, wanted: Tensors) -> bool:
    """Whether states and sums are those wanted, up to rounding; rows need not be finite."""
    for one, other in zip(got, wanted, strict=True):
        if not torch.equal(one.isfinite(), other.isfinite()):
            return False
        one, other = one.float().nan_to_num(0, 0, 0), other.float().nan_to_num(0, 0, 0)
        if (one - other).norm() > _ROUNDING * other.norm():
            return False
    return True
