"""An EAGLE-3 drafter of one layer: real entries, and whole chains, as one kernel each."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from speckernels.attention import AttentionMetadata
from speckernels.library import kernels_for, num_threads
from speckernels.linear import PackedWeight
from speckernels.llama_decoder import Layer, LayerWeights, RowPlaces, layer_struct, row_elements
from speckernels.sampling import SamplingKeys

_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


class _Drafter(ctypes.Structure):
    """`Drafter` of eagle_drafter.cpp."""

    _fields_ = (
        ("layer", Layer),
        *((name, _POINTER) for name in ("embedding", "fuse_norm", "final_norm")),
        *((name, _POINTER) for name in ("cosines", "sines", "fuse", "head", "target_ids")),
        *((name, _LONG) for name in ("captured", "vocabulary", "window")),
        *((name, _INT) for name in ("recycle_normed", "residual_normed")),
    )


class _Entries(ctypes.Structure):
    """`Entries` of eagle_drafter.cpp."""

    _fields_ = (
        ("places", RowPlaces),
        *((name, _POINTER) for name in ("tokens", "features", "hidden", "keys", "values", "room")),
        ("projected", _INT),
    )


class _Chains(ctypes.Structure):
    """`Chains` of eagle_drafter.cpp."""

    _fields_ = (
        *((name, _LONG) for name in ("rows", "longest")),
        *((name, _POINTER) for name in ("lengths", "positions", "slabs")),
        *((name, _POINTER) for name in ("seeds", "noise_positions", "choices", "temperatures")),
        *((name, _POINTER) for name in ("hidden", "keys", "values", "room", "numbers")),
        *((name, _POINTER) for name in ("winners", "shares")),
    )


@dataclass(frozen=True, slots=True)
class EagleWeights:
    """What a drafter reads; its layer's first product takes embedding and state side by side.

    `layer.input_norm` is the norm of the state. `embedding` [vocab, hidden] is normed already;
    `fuse` makes a state of captured ones side by side, which `fuse_norm` [captured, hidden] norms
    before, if it is there; cosines and sines [positions, head_dim] are as `rotate` takes them;
    `target_ids` int64 [draft vocabulary]. What is recycled, and what the layer adds to, may be
    normed or not.
    """

    layer: LayerWeights
    embedding: torch.Tensor
    fuse_norm: torch.Tensor | None
    fuse: PackedWeight
    final_norm: torch.Tensor
    cosines: torch.Tensor
    sines: torch.Tensor
    head: PackedWeight
    target_ids: torch.Tensor
    window: int | None
    recycle_normed: bool
    residual_normed: bool


class EagleKernel:
    """A drafter with bf16 weights on a CPU."""

    def __init__(self, weights: EagleWeights) -> None:
        self._weights = w = weights
        width = len(w.final_norm)
        tensors = (w.final_norm, w.cosines, w.sines, w.fuse.weight, w.head.weight, w.target_ids)
        self._drafter = _Drafter(
            layer_struct(w.layer),
            w.embedding.data_ptr(),
            None if w.fuse_norm is None else w.fuse_norm.data_ptr(),
            *(tensor.data_ptr() for tensor in tensors),
            w.fuse.inputs // width,
            len(w.target_ids),
            w.window or 0,
            w.recycle_normed,
            w.residual_normed,
        )
        # What an entry and a chain leave between their steps.
        self._entry_elements = w.fuse.inputs + 3 * width + row_elements(w.layer)
        self._chain_elements = 3 * width + len(w.target_ids) + row_elements(w.layer)

    def append(
        self,
        features: torch.Tensor,
        rows: torch.Tensor,
        reach: AttentionMetadata,
        keys: torch.Tensor,
        values: torch.Tensor,
        hidden: torch.Tensor | None,
    ) -> bool:
        """Run real entries with features [n, captured * H], or what `fuse` makes of them [n, H].

        Args:
            features: of the entries.
            rows: int64 [3, n], contiguous: target ids, positions, and slots.
            reach: of the entries.
            keys: [slots, kv_heads, d], written at the slots.
            values: as `keys`.
            hidden: what leaves the layer [n, H], written; None where only keys and values are
                wanted, which takes less than half the time.

        Returns whether there is a kernel for it.
        """
        kernels = kernels_for(features, keys, values)
        if kernels is None:
            return False
        w, features = self._weights, features.contiguous()
        room = features.new_empty(len(features) * self._entry_elements)
        tables = (w.cosines, w.sines, rows[1], rows[2], reach.table)
        entries = _Entries(
            RowPlaces(
                len(features),
                len(reach.parts),
                len(reach.prompts),
                *(table.data_ptr() for table in tables),
            ),
            *(tensor.data_ptr() for tensor in (rows[0], features)),
            None if hidden is None else hidden.data_ptr(),
            *(tensor.data_ptr() for tensor in (keys, values, room)),
            features.shape[1] != w.fuse.inputs,
        )
        done = kernels.hc_entries(ctypes.byref(self._drafter), ctypes.byref(entries), num_threads())
        return bool(done)

    def draft(
        self,
        hidden: torch.Tensor,
        lengths: Sequence[int],
        rows: torch.Tensor,
        noise: SamplingKeys | None,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Run a chain for each row of hidden [n, H], what left the layer for the last real entry.

        Args:
            hidden: overwritten.
            lengths: of the chains, in tokens, none longer than the one before it.
            rows: int64 [2, n], contiguous: the position of the last real entry, and the slot of
                position 0.
            noise: of each chain's first token.
            keys: [slots, kv_heads, d], written for the guesses.
            values: as `keys`.

        Returns draft ids int64 [longest, n] as `draw` gives them and their shares fp32
        [longest, n], zeros behind a chain's end; or None if there is no kernel for it.
        """
        kernels = kernels_for(hidden, keys, values)
        if kernels is None:
            return None
        count, longest = len(lengths), lengths[0]
        ends = torch.tensor(lengths)
        numbers = torch.empty(6 * count, dtype=torch.int64)
        winners = torch.zeros(longest, count, dtype=torch.int64)
        shares = torch.zeros(longest, count)
        room = hidden.new_empty(count * self._chain_elements)
        keys_of_noise: tuple[int | None, ...] = (None,) * 4
        if noise is not None:
            drawn = (noise.seeds, noise.positions, noise.choices, noise.temperatures)
            keys_of_noise = tuple(tensor.data_ptr() for tensor in drawn)
        chains = _Chains(
            count,
            longest,
            *(tensor.data_ptr() for tensor in (ends, rows[0], rows[1])),
            *keys_of_noise,
            *(tensor.data_ptr() for tensor in (hidden, keys, values, room, numbers)),
            *(tensor.data_ptr() for tensor in (winners, shares)),
        )
        done = kernels.hc_chain(ctypes.byref(self._drafter), ctypes.byref(chains), num_threads())
        return (winners, shares) if done else None
