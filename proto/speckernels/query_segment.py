"""Rows of a batch that belong together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QuerySegment:
    """Rows [row, row + count) of a batch, of one sequence.

    The first one attends to the slots [start, start + length), each further one to one more.
    Rows of a prompt take the steps of matrix products, however the prompt is cut: where kernels
    serve them, a row comes out bit by bit as in any other cut. Others take those of single rows.
    """

    row: int
    count: int
    start: int
    length: int
    prompt: bool = False
