"""A decoder layer of Llama's form as one kernel, for batches of few rows a sequence."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch

from specwire.kernels.attention import Reach
from specwire.kernels.library import kernels_for, threads
from specwire.kernels.linear import Product

_POINTER, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class _Layer(ctypes.Structure):
    """`Layer` of decoder.cpp."""

    _fields_ = (
        *((f"{name}_norm", _POINTER) for name in ("input", "post", "query", "key")),
        *((name, _POINTER) for name in ("qkv", "out", "gate_up", "down")),
        *((f"{name}_bias", _POINTER) for name in ("qkv", "out", "gate_up", "down")),
        *((name, _LONG) for name in ("hidden", "heads", "kv_heads", "dim", "inner")),
        *((name, _FLOAT) for name in ("eps", "head_eps", "scale")),
    )


class _Batch(ctypes.Structure):
    """`Batch` of decoder.cpp."""

    _fields_ = (
        *((name, _LONG) for name in ("rows", "segments")),
        *((name, _POINTER) for name in ("cosines", "sines", "slots", "table", "scratch")),
    )


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """Norms [hidden] and [dim] in bf16, those of heads or none; products; and their shape."""

    input_norm: torch.Tensor
    post_norm: torch.Tensor
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    qkv: Product
    out: Product
    gate_up: Product
    down: Product
    heads: int
    kv_heads: int
    dim: int
    eps: float
    head_eps: float
    scale: float


class DecoderBatch:
    """Rows that all layers run alike: their rotation [rows, 1, dim], slots and reach."""

    def __init__(
        self, cosines: torch.Tensor, sines: torch.Tensor, slots: torch.Tensor, reach: Reach
    ) -> None:
        """Take tables as `rotate` does, one row a position; `reach` has no `many`."""
        self._kept = cosines, sines, slots, reach
        addresses = (kept.data_ptr() for kept in (cosines, sines, slots, reach.table))
        self.struct = _Batch(len(slots), len(reach.few), *addresses, 0)
        self._scratch = cosines.new_empty(0)

    def reserve(self, row_elements: int) -> None:
        """Make room for what a layer leaves between its steps."""
        if self._scratch.numel() < row_elements * self.struct.rows:
            self._scratch = self._scratch.new_empty(row_elements * self.struct.rows)
            self.struct.scratch = self._scratch.data_ptr()


class Decoder:
    """A layer with bf16 weights on a CPU with matrix tiles."""

    def __init__(self, weights: DecoderWeights) -> None:
        self._weights = weights
        w, hidden, inner = weights, len(weights.input_norm), weights.down.inputs
        norms = (w.input_norm, w.post_norm, w.query_norm, w.key_norm)
        products = (w.qkv, w.out, w.gate_up, w.down)
        pointers = (
            *(_address(norm) for norm in norms),
            *(_address(product.weight) for product in products),
            *(_address(product.bias) for product in products),
        )
        shape = (hidden, w.heads, w.kv_heads, w.dim, inner)
        self._struct = _Layer(*pointers, *shape, w.eps, w.head_eps, w.scale)
        heads = 2 * w.heads + 2 * w.kv_heads
        self._row_elements = 2 * hidden + heads * w.dim + 3 * inner

    def run(
        self, states: torch.Tensor, batch: DecoderBatch, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor | None:
        """Map states [rows, hidden], contiguous, and write keys and values [slots, kv_heads, dim].

        Returns [rows, hidden], or None if the kernel does not take this shape.
        """
        kernels = kernels_for(states, keys, values)
        if kernels is None:
            return None
        batch.reserve(self._row_elements)
        out = torch.empty_like(states)
        done = kernels.hc_decoder_layer(
            ctypes.byref(self._struct),
            ctypes.byref(batch.struct),
            states.data_ptr(),
            out.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            threads(),
        )
        return out if done else None


def _address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
