"""A decoder of Llama's form as one kernel, from tokens to the final norm."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from speckernels.attention import AttentionMetadata
from speckernels.library import kernels_for, num_threads
from speckernels.linear import PackedWeight

_POINTER, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class Layer(ctypes.Structure):
    """`Layer` of llama_decoder.h."""

    _fields_ = (
        *((f"{name}_norm", _POINTER) for name in ("input", "post", "query", "key")),
        *((name, _POINTER) for name in ("qkv", "out", "gate_up", "down")),
        *((f"{name}_bias", _POINTER) for name in ("qkv", "out", "gate_up", "down")),
        *((name, _LONG) for name in ("inputs", "hidden", "heads", "kv_heads", "dim", "inner")),
        *((name, _FLOAT) for name in ("eps", "head_eps", "scale", "softcap")),
        ("window", _LONG),
        ("sinks", _POINTER),
    )


class _Decoder(ctypes.Structure):
    """`Decoder` of llama_decoder.cpp."""

    _fields_ = (
        ("layers", ctypes.POINTER(Layer)),
        *((name, _LONG) for name in ("count", "vocabulary", "positions")),
        *((name, _POINTER) for name in ("embedding", "cosines", "sines", "final_norm")),
        ("eps", _FLOAT),
    )


class _Batch(ctypes.Structure):
    """`Batch` of llama_decoder.cpp."""

    _fields_ = (
        *((name, _LONG) for name in ("rows", "segments", "prompts", "captures", "width")),
        *((name, _POINTER) for name in ("tokens", "positions", "slots", "feature_rows")),
        *((name, _POINTER) for name in ("table", "captured", "memories")),
        *((name, _POINTER) for name in ("features", "out", "room")),
    )


class RowPlaces(ctypes.Structure):
    """`Places` of llama_decoder.h."""

    _fields_ = (
        *((name, _LONG) for name in ("rows", "segments", "prompts")),
        *((name, _POINTER) for name in ("cosines", "sines", "positions", "slots", "table")),
    )


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """A layer's norms [hidden] and [dim] in bf16, those of heads or none; products; its shape.

    `window`, `softcap` and `sinks`, fp32 [heads], are as `attend` takes them.
    """

    input_norm: torch.Tensor
    post_norm: torch.Tensor
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    qkv: PackedWeight
    out: PackedWeight
    gate_up: PackedWeight
    down: PackedWeight
    heads: int
    kv_heads: int
    dim: int
    eps: float
    head_eps: float
    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """What a decoder reads.

    `embedding` is [vocab, hidden]; cosines and sines [positions, dim] are as `rotate` takes them;
    `final_norm` is [hidden].
    """

    layers: Sequence[LayerWeights]
    embedding: torch.Tensor
    cosines: torch.Tensor
    sines: torch.Tensor
    final_norm: torch.Tensor
    eps: float


class KVMemory:
    """Keys and values per layer, each [slots, kv_heads, dim], as the kernel finds them."""

    def __init__(self, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
        self._pools = keys, values
        pairs = zip(keys, values, strict=True)
        self.table = torch.tensor([(key.data_ptr(), value.data_ptr()) for key, value in pairs])


class LlamaKernel:
    """A decoder with bf16 weights on a CPU."""

    def __init__(self, weights: DecoderWeights) -> None:
        self._weights = w = weights
        self._layers = (Layer * len(w.layers))(*map(layer_struct, w.layers))
        read = (w.embedding, w.cosines, w.sines, w.final_norm)
        sizes = len(w.layers), len(w.embedding), len(w.cosines)
        self._decoder = _Decoder(
            self._layers, *sizes, *(tensor.data_ptr() for tensor in read), w.eps
        )
        # What a row leaves between the steps of a layer.
        self._row_elements = len(w.final_norm) + max(map(row_elements, w.layers))

    def run(
        self,
        rows: torch.Tensor,
        reach: AttentionMetadata,
        memory: KVMemory,
        captured: torch.Tensor,
        features: torch.Tensor,
        feature_rows: torch.Tensor,
    ) -> torch.Tensor | None:
        """Run tokens through all layers, and keep their keys and values.

        Args:
            rows: int64 [3, n], contiguous: tokens, positions, and slots.
            reach: of the rows.
            memory: written at the slots.
            captured: int64 [captures, 2]: a layer whose input is kept, or the number of layers
                for what leaves the last one, and the column of `features` from which on it is.
            features: [*, width], written.
            feature_rows: int64 [n]: the row of `features` that each row takes.

        Returns normed states [n, hidden], or None if the kernel does not take this shape.

        Raises:
            IndexError: a token or a position is out of range.
        """
        kernels = kernels_for(features, self._weights.embedding)
        if kernels is None:
            return None
        count, width = rows.shape[1], len(self._weights.final_norm)
        out = features.new_empty(count, width)
        room = features.new_empty(count * self._row_elements)
        at, row_bytes = rows.data_ptr(), count * rows.element_size()
        others = (feature_rows, reach.table, captured, memory.table, features, out, room)
        batch = _Batch(
            count,
            len(reach.parts),
            len(reach.prompts),
            len(captured),
            features.shape[1],
            *(at, at + row_bytes, at + 2 * row_bytes),
            *(tensor.data_ptr() for tensor in others),
        )
        done = kernels.hc_decode(ctypes.byref(self._decoder), ctypes.byref(batch), num_threads())
        if done < 0:
            raise IndexError("a token or a position is out of range")
        return out if done else None


def layer_struct(w: LayerWeights) -> Layer:
    """A layer as the kernels read it, whose tensors must be kept."""
    norms = (w.input_norm, w.post_norm, w.query_norm, w.key_norm)
    products = (w.qkv, w.out, w.gate_up, w.down)
    pointers = (
        *(_address(norm) for norm in norms),
        *(_address(product.weight) for product in products),
        *(_address(product.bias) for product in products),
    )
    shape = (w.qkv.inputs, len(w.input_norm), w.heads, w.kv_heads, w.dim, w.down.inputs)
    scoring = w.scale, w.softcap or 0.0, w.window or 0, _address(w.sinks)
    return Layer(*pointers, *shape, w.eps, w.head_eps, *scoring)


def row_elements(w: LayerWeights) -> int:
    """Elements that a row leaves between the steps of a layer."""
    heads = 2 * w.heads + 2 * w.kv_heads
    return 2 * len(w.input_norm) + heads * w.dim + 3 * w.down.inputs


def _address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
