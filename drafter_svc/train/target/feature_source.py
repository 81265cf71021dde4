"""What training needs of the target for a text, wherever the target runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Captured:
    """What the target computed for one document of T tokens."""

    features: Tensor  # [T, captured * H], bf16: aux states side by side, in the order of aux_layers
    final: Tensor  # [T, H], bf16: what the target's output layer reads (after the final norm)


class FeatureSource(Protocol):
    """A target that captures the states of whole documents."""

    def capture(
        self, documents: Sequence[Sequence[int]], aux_layers: tuple[int, ...]
    ) -> list[Captured]:
        """States of each document, in order. Raises ValueError for a document over the limit."""
