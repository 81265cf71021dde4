"""What things should take: from their shapes, and what the device was measured to give.

Weights are read at 85 % of the memory's speed, products done at 65 % of the rate of large ones,
and every small kernel of a recorded graph takes 2 us. For Llama-3.1-8B on an H200 that makes 5.3 ms
of a forward of a single row with its head. Bars are a quarter above.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_READ, _MULTIPLIED, _NODE = 0.85, 0.65, 2e-6
# Kernels of a recorded layer that are no products, and of a chain's step with its draw.
_LAYER_NODES, _STEP_NODES = 15, 45
_ROOM = 1.25
_BYTES = 2  # of a weight in bf16


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes a second of the memory, and operations a second of a large product in bf16."""

    memory: float
    products: float


class Reckoned:
    """Bars, in milliseconds, of a Llama of such a configuration on such a device."""

    def __init__(self, target: Mapping[str, Any], rates: Rates) -> None:
        self._target = target
        self._rates = rates
        width, inner = target["hidden_size"], target["intermediate_size"]
        heads, kv_heads, dim = (
            target[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim")
        )
        #: Weights of a layer, and of the head.
        self.layer: int = width * dim * (2 * heads + 2 * kv_heads) + 3 * width * inner
        self.head: int = width * target["vocab_size"]
        # A drafter's reads embedding and state, and it may draft 32,000 tokens.
        self._draft_layer = self.layer + width * dim * (heads + 2 * kv_heads)
        self._draft_head: int = width * min(32000, target["vocab_size"])
        self._fuse = 3 * width * width

    def forward(self, rows: int) -> float:
        """A forward with its head, as a recorded graph."""
        layers = self._target["num_hidden_layers"]
        return self._bar(layers * self.layer + self.head, rows, layers * _LAYER_NODES)

    def logits(self, rows: int) -> float:
        """The head alone with its argmax, whose fp32 logits are written and read."""
        passes = 3 * 4 * rows * self._target["vocab_size"]
        written: float = _ROOM * 1e3 * passes / (_READ * self._rates.memory)
        return self._bar(self.head, rows, 10) + written

    def drafted(self, streams: int, rows: int, length: int) -> float:
        """A drafter's step on the device: `rows` appended for each stream, chains of `length`."""
        appended = self._bar(self._fuse + self._draft_layer, rows * streams, 32)
        weights = length * self._draft_head + (length - 1) * self._draft_layer
        return appended + self._bar(weights, streams, length * _STEP_NODES)

    def _bar(self, weights: int, rows: int, nodes: int) -> float:
        """Milliseconds: weights are read, or multiplied with many rows, whichever takes longer."""
        read = weights * _BYTES / (_READ * self._rates.memory)
        multiplied = 2 * weights * rows / (_MULTIPLIED * self._rates.products)
        return _ROOM * 1e3 * (max(read, multiplied) + nodes * _NODE)


def host(streams: int, per_round: Mapping[int, float]) -> float:
    """What Python and launches may take in a round, in ms: on a line through known streams."""
    known = sorted(per_round)
    below = max((n for n in known if n <= streams), default=known[0])
    above = min((n for n in known if n >= streams), default=known[-1])
    if below == above:
        return per_round[below]
    share = (streams - below) / (above - below)
    return per_round[below] + share * (per_round[above] - per_round[below])
