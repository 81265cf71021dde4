"""Shapes of what is run: those of an 8B on a GPU, and small ones that a CPU gets through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from loadtests.capacity.random_models import SHAPES


@dataclass(frozen=True, slots=True)
class Shapes:
    """`target` is a LlamaConfig's arguments; `shape` names it for loadtests.capacity, if it can.

    `batches` are (streams, rows of each) of forwards. `lengths` are keys of attention, `context`
    those of decoding streams. `capacity` are that command's arguments.
    """

    target: Mapping[str, Any]
    shape: str | None
    batches: tuple[tuple[int, int], ...]
    lengths: tuple[int, ...]
    context: int
    streams: tuple[int, ...]
    drawn: tuple[int, ...]
    matrix: int
    records: int
    text: int
    text_layers: int
    free: float  # GiB
    measured: int  # bytes that are read to tell the memory's speed
    repeats: int
    dtypes: tuple[torch.dtype, ...]
    capacity: Mapping[str, Any]

    def target_of(self, layers: int | None = None) -> dict[str, Any]:
        """The arguments of the target, or of one with so many layers."""
        changed = {} if layers is None else {"num_hidden_layers": layers}
        return dict(self.target) | changed


def _small(width: int, layers: int, vocabulary: int) -> dict[str, Any]:
    return dict(SHAPES["llama-3.1-8b"]) | {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": width // 8,
        "max_position_embeddings": 1024,
    }


_FULL = Shapes(
    target=SHAPES["llama-3.1-8b"],
    shape="llama-3.1-8b",
    batches=((1, 1), (1, 4), (16, 1), (64, 1), (16, 4), (64, 4)),
    lengths=(1, 17, 256, 1000, 4000, 16000),
    context=250,
    streams=(1, 16, 64),
    drawn=(1, 64, 256),
    matrix=4096,
    records=36,
    text=96,
    text_layers=4,
    free=40.0,
    measured=4 << 30,
    repeats=20,
    dtypes=(torch.float32, torch.bfloat16),
    capacity={"streams": "1,16,64", "tokens": 128, "repeats": 2},
)
_SMALL = Shapes(
    target=_small(256, 4, 4096),
    shape=None,
    batches=((1, 1), (1, 4), (8, 1), (8, 4)),
    lengths=(1, 17, 130, 500),
    context=60,
    streams=(1, 4, 8),
    drawn=(1, 16),
    matrix=128,
    records=4,
    text=48,
    text_layers=4,
    free=0.0,
    measured=64 << 20,
    repeats=5,
    dtypes=(torch.float32, torch.bfloat16),
    capacity={"streams": "1,4", "prompt": 20, "tokens": 64, "repeats": 1, "kv-memory": "64MiB"},
)
_TINY = Shapes(
    target=_small(128, 4, 512),
    shape=None,
    batches=((1, 1), (1, 4), (4, 4)),
    lengths=(1, 17, 60),
    context=20,
    streams=(1, 4),
    drawn=(1, 4),
    matrix=32,
    records=3,
    text=16,
    text_layers=4,
    free=0.0,
    measured=4 << 20,
    repeats=2,
    dtypes=(torch.float32, torch.bfloat16),
    capacity={"streams": "2", "prompt": 8, "tokens": 32, "repeats": 1, "kv-memory": "16MiB"},
)
_BY_NAME = {"full": _FULL, "small": _SMALL, "tiny": _TINY}


def shapes_of(size: str | None, device: torch.device) -> Shapes:
    """The shapes of a size, or those that suit a device."""
    return _BY_NAME[size or ("full" if device.type == "cuda" else "small")]
