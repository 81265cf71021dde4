"""Documents whose states are asked for, and the rows that answer, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from specwire.v1.tensor_pb2 import Tensor


@dataclass(frozen=True, slots=True)
class FeatureRequest:
    """Wish for the states of one document of a client: input to `aux_layers`, and the final."""

    client: int
    document: int
    tokens: tuple[int, ...]
    aux_layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FeatureRows:
    """States of rows [start, start + count) of a document, as they travel."""

    document: int
    start: int
    count: int
    features: Tensor
    final: Tensor


@dataclass(frozen=True, slots=True)
class EndOfRequests:
    """Stands among the events of a call for the end of its requests."""
