"""Decoder layers of Llama's form as one kernel."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from specwire.kernels.attention import Reach
from specwire.kernels.library import kernels_for, threads
from specwire.kernels.linear import Product

_POINTER, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class Layer(ctypes.Structure):
    """`Layer` of decoder.h."""

    _fields_ = (
        *((f"{name}_norm", _POINTER) for name in ("input", "post", "query", "key")),
        *((name, _POINTER) for name in ("qkv", "out", "gate_up", "down")),
        *((f"{name}_bias", _POINTER) for name in ("qkv", "out", "gate_up", "down")),
        *((name, _LONG) for name in ("inputs", "hidden", "heads", "kv_heads", "dim", "inner")),
        *((name, _FLOAT) for name in ("eps", "head_eps", "scale")),
    )


class _Memory(ctypes.Structure):
    """`Memory` of decoder.cpp."""

    _fields_ = (("keys", _POINTER), ("values", _POINTER), ("input", _POINTER))


class Places(ctypes.Structure):
    """`Places` of decoder.h."""

    _fields_ = (
        *((name, _LONG) for name in ("rows", "segments", "prompts")),
        *((name, _POINTER) for name in ("cosines", "sines", "positions", "slots", "table")),
    )


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """A layer's norms [hidden] and [dim] in bf16, those of heads or none; products; its shape."""

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


@dataclass(frozen=True, slots=True)
class DecoderMemory:
    """A layer's keys and values [slots, kv_heads, dim], and where its input [rows, hidden] goes."""

    keys: torch.Tensor
    values: torch.Tensor
    input: torch.Tensor | None


class Decoder:
    """Layers with bf16 weights on a CPU, one behind the other."""

    def __init__(self, layers: Sequence[DecoderWeights]) -> None:
        self._weights = tuple(layers)
        self._layers = (Layer * len(layers))(*map(layer_struct, layers))
        # What a row leaves between the steps of a layer.
        self._row_elements = max(map(row_elements, layers))

    def run(
        self,
        states: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        slots: torch.Tensor,
        reach: Reach,
        memories: Sequence[DecoderMemory],
    ) -> torch.Tensor | None:
        """Map states [rows, hidden], and write keys and values at `slots`, int64 [rows].

        The rotation is what `rotate` takes. Returns [rows, hidden], or None if the kernel does not
        take this shape.
        """
        kernels = kernels_for(states)
        if kernels is None:
            return None
        out = states.clone(memory_format=torch.contiguous_format)
        scratch = states.new_empty(len(slots) * self._row_elements)
        tables = (kept.data_ptr() for kept in (*rotation, slots, reach.table))
        places = (_Memory * len(memories))(
            *(_Memory(m.keys.data_ptr(), m.values.data_ptr(), _address(m.input)) for m in memories)
        )
        done = kernels.hc_decode(
            self._layers,
            places,
            len(memories),
            ctypes.byref(Places(len(slots), len(reach.parts), len(reach.prompts), *tables)),
            out.data_ptr(),
            scratch.data_ptr(),
            threads(),
        )
        return out if done else None


def layer_struct(w: DecoderWeights) -> Layer:
    """A layer as the kernels read it, whose tensors must be kept."""
    norms = (w.input_norm, w.post_norm, w.query_norm, w.key_norm)
    products = (w.qkv, w.out, w.gate_up, w.down)
    pointers = (
        *(_address(norm) for norm in norms),
        *(_address(product.weight) for product in products),
        *(_address(product.bias) for product in products),
    )
    shape = (w.qkv.inputs, len(w.input_norm), w.heads, w.kv_heads, w.dim, w.down.inputs)
    return Layer(*pointers, *shape, w.eps, w.head_eps, w.scale)


def row_elements(w: DecoderWeights) -> int:
    """Elements that a row leaves between the steps of a layer."""
    heads = 2 * w.heads + 2 * w.kv_heads
    return 2 * len(w.input_norm) + heads * w.dim + 3 * w.down.inputs


def _address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
