"""Attention of packed rows on a GPU: torch's FlashAttention, which reads keys where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.nn import functional as F

from specwire import logs
from specwire.kernels.segment import Segment

_log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Spans:
    """Segments in order of their rows, int32 on the rows' device.

    `starts` [segments + 1] is where the rows of each begin, and the number of rows; `slots`
    [segments + 1] where its keys do (the last one has no meaning); `lengths` [segments] counts the
    keys that its last row attends to. No segment has more rows than `rows` or more keys than
    `keys`.
    """

    starts: torch.Tensor
    slots: torch.Tensor
    lengths: torch.Tensor
    rows: int
    keys: int

    @classmethod
    def of(cls, table: torch.Tensor, rows: int, keys: int) -> Spans:
        """Views of `span_table`'s rows; `rows` and `keys` are the most of any segment."""
        return cls(table[0], table[1], table[2, :-1], rows, keys)


def span_table(segments: Sequence[Segment], rows: int, count: int, spare: int) -> list[list[int]]:
    """The fields of `Spans`, [3, count + 1], filled up to `rows` rows and `count` segments.

    Rows that no segment has attend to the slot `spare` alone, each as a segment of its own; the
    segments that are then left have no rows.
    """
    starts = [segment.row for segment in segments]
    slots = [segment.start for segment in segments]
    lengths = [segment.length + segment.count - 1 for segment in segments]
    filling = range(segments[-1].row + segments[-1].count if segments else 0, rows)
    empty = count + 1 - len(segments) - len(filling)
    starts += [*filling, *[rows] * empty]
    slots += [spare] * (len(filling) + empty)
    lengths += [*[1] * len(filling), *[0] * empty]
    return [starts, slots, lengths]


def flash_attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    spans: Spans,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """Attend packed rows [rows, heads, d] to pools [slots, kv_heads, d]: [rows, heads, d].

    A row sees the last `window` of its keys at most, its own among them. The keys of a segment lie
    side by side in the pool, wherever those of the others do. Where no segment has more than one
    row, each has one.
    """
    # Imported here since it brings torch's compiler with it, which takes seconds.
    from torch.nn.attention.varlen import varlen_attn

    # A single row sees all keys, and FlashAttention shares them among more of the device.
    seen = (-1, 0) if spans.rows > 1 else (-1, -1)
    if window is not None:
        seen = window - 1, 0
    out: Any = varlen_attn(
        query,
        keys,
        values,
        spans.starts,
        spans.slots,
        spans.rows,
        spans.keys,
        scale=scale,
        window_size=seen,
        enable_gqa=query.shape[1] > keys.shape[1],
        seqused_k=spans.lengths,
    )
    attended: torch.Tensor = out
    return attended


@cache
def flash_serves(
    device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, dim: int
) -> bool:
    """Whether FlashAttention attends on this device as is wanted, which is tried."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    try:
        same = _tried(device, dtype, heads, kv_heads, dim)
        reason = "it attends otherwise than wanted"
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        same, reason = False, str(error).partition("\n")[0]
    if not same:
        _log.warning("no FlashAttention; sequences attend one by one", reason=reason)
    return same


def _tried(device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, dim: int) -> bool:
    """Whether segments in no order of their slots, filled up, get what plain attention gives."""
    generator = torch.Generator().manual_seed(0)
    shape = kv_heads, dim
    query = torch.randn(5, heads, dim, generator=generator).to(device, dtype)
    keys, values = (torch.randn(96, *shape, generator=generator).to(device, dtype) for _ in "kv")
    drafts, single = [Segment(0, 3, 64, 18), Segment(3, 1, 8, 33)], [Segment(0, 1, 64, 18)]
    for segments, reaches, window in (
        (drafts, [(64, 18), (64, 19), (64, 20), (8, 33), (0, 1)], None),
        (single, [(64, 18), (0, 1)], None),
        (drafts, [(77, 5), (78, 5), (79, 5), (36, 5), (0, 1)], 5),
        (single, [(77, 5), (0, 1)], 5),
    ):
        rows = len(reaches)
        table = torch.tensor(span_table(segments, rows, rows, 0), dtype=torch.int32, device=device)
        spans = Spans.of(table, segments[0].count, 96)
        got = flash_attend(query[:rows], keys, values, spans, dim**-0.5, window).float()
        wanted = torch.empty_like(got)
        for row, (start, length) in enumerate(reaches):
            read = slice(start, start + length)
            key, value = (pool[read].float().transpose(0, 1) for pool in (keys, values))
            asked = query[row, :, None].float()
            wanted[row] = F.scaled_dot_product_attention(asked, key, value, enable_gqa=True)[:, 0]
        far = F.mse_loss(got, wanted).sqrt()
        if far > 2 * torch.finfo(dtype).eps * wanted.square().mean().sqrt():
            return False
    return True
