"""Attention of packed rows on a GPU: torch's FlashAttention, which reads keys where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch.nn import functional as F

from speckernels.query_segment import QuerySegment
from specserve import logs

_log = logs.get(__name__)

# The operator below torch's own functions: it is alike in all versions from 2.11 on.
_forward = torch.ops.aten._flash_attention_forward.default


@dataclass(frozen=True, slots=True)
class VarlenTables:
    """Segments in order of their rows, int32 on the rows' device.

    `starts` [segments + 1] is where the rows of each begin, and the number of rows; `slots`
    [segments + 1] where its keys do (the last one has no meaning); `lengths` [segments] counts the
    keys that its last row attends to. No segment has more rows than `rows` or more keys than
    `keys`; where `rows` is 1, each has one. A row sees the last `window` of its keys at most, its
    own among them.
    """

    starts: torch.Tensor
    slots: torch.Tensor
    lengths: torch.Tensor
    rows: int
    keys: int
    window: int | None = None

    @classmethod
    def of(cls, table: torch.Tensor, rows: int, keys: int) -> VarlenTables:
        """Views of `varlen_table`'s rows; `rows` and `keys` are the most of any segment."""
        return cls(table[0], table[1], table[2, :-1], rows, keys)

    def within(self, window: int) -> VarlenTables:
        """The same rows, which see the last `window` of their keys at most.

        A single row's window is a shorter segment: FlashAttention shares its keys among more of
        the device where it is told of none.
        """
        if self.rows > 1:
            return replace(self, window=window)
        hidden = F.pad((self.lengths - window).clamp(min=0), (0, 1))
        lengths = self.lengths.clamp(max=window)
        return VarlenTables(self.starts, self.slots + hidden, lengths, 1, min(self.keys, window))


def varlen_table(segments: Sequence[QuerySegment]) -> list[list[int]]:
    """The fields of `VarlenTables`, [3, segments + 1]."""
    rows = segments[-1].row + segments[-1].count if segments else 0
    return [
        [*(segment.row for segment in segments), rows],
        [*(segment.start for segment in segments), 0],
        [*(segment.length + segment.count - 1 for segment in segments), 0],
    ]


def packed_row_table(segments: Sequence[QuerySegment], rows: int, spare: int) -> list[list[int]]:
    """Slots and lengths of `VarlenTables` [2, rows + 1] in which each row is a segment of its own.

    Rows that no segment has attend to the slot `spare` alone.
    """
    slots: list[int] = []
    lengths: list[int] = []
    for segment in segments:
        slots += [segment.start] * segment.count
        lengths += range(segment.length, segment.length + segment.count)
    filling = rows + 1 - len(slots)
    return [slots + [spare] * filling, lengths + [1] * filling]


def flash_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    spans: VarlenTables,
    scale: float,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend packed rows [rows, heads, d] to pools [slots, kv_heads, d]: [rows, heads, d].

    `sinks` [heads] are scores beside those of the keys, of no value. The keys of a segment lie
    side by side in the pool, wherever those of the others do.
    """
    # A single row sees all its keys, and its heads are grouped where nothing is said to be hidden.
    causal = spans.rows > 1
    out: torch.Tensor
    out, sums, *_ = _forward(
        query,
        keys,
        values,
        spans.starts,
        spans.slots,
        spans.rows,
        spans.keys,
        0.0,
        causal,
        False,
        scale=scale,
        window_size_left=-1 if spans.window is None else spans.window - 1,
        window_size_right=0 if causal else -1,
        seqused_k=spans.lengths,
    )
    if sinks is not None:
        # `sums` [heads, rows] are logarithms of the sums that the sinks were left out of.
        shares = torch.sigmoid(sums.T - sinks.float())
        out = (out.float() * shares[..., None]).to(out.dtype)
    return out.contiguous()


def flash_serves(
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    dim: int,
    windowed: bool = False,
    sinks: bool = False,
) -> bool:
    """Whether FlashAttention attends on this device as is wanted, which is tried."""
    return flash_refusal(device, dtype, heads, kv_heads, dim, windowed, sinks) is None


@cache
def flash_refusal(
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    dim: int,
    windowed: bool = False,
    sinks: bool = False,
) -> str | None:
    """Why FlashAttention does not attend on this device as is wanted; None where it does.

    Rows are tried within a window where they are `windowed`, and beside `sinks`.
    """
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return "FlashAttention is for GPUs, in bfloat16 or float16"
    try:
        same = _tried(device, dtype, heads, kv_heads, dim, windowed, sinks)
        reason = "FlashAttention attends otherwise than wanted"
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        first, *_ = str(error).partition("\n")
        same, reason = False, f"FlashAttention fails: {first}"
    if same:
        return None
    _log.warning("sequences attend one by one", reason=reason)
    return reason


def _tried(
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    dim: int,
    windowed: bool,
    sinks: bool,
) -> bool:
    """Whether segments in no order of their slots get what plain attention gives."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    query = drawn(5, heads, dim)
    keys, values = drawn(704, kv_heads, dim), drawn(704, kv_heads, dim)
    beside = drawn(heads) if sinks else None
    for segments, most, window in (
        ([QuerySegment(0, 3, 64, 18), QuerySegment(3, 1, 8, 33), QuerySegment(4, 1, 0, 1)], 33, 5),
        ([QuerySegment(0, 1, 64, 18), QuerySegment(1, 1, 8, 33), QuerySegment(2, 1, 0, 1)], 33, 5),
        # Keys of single rows are split where there may be many of them, as in a pool that serves.
        (
            [QuerySegment(0, 1, 64, 18), QuerySegment(1, 1, 90, 600), QuerySegment(2, 1, 0, 1)],
            1 << 17,
            500,
        ),
    ):
        table = torch.tensor(varlen_table(segments), dtype=torch.int32, device=device)
        spans = VarlenTables.of(table, segments[0].count, most)
        if windowed:
            spans = spans.within(window)
        rows = segments[-1].row + 1
        got = flash_attention(query[:rows], keys, values, spans, dim**-0.5, beside).float()
        wanted = torch.empty_like(got)
        for segment in segments:
            for row in range(segment.row, segment.row + segment.count):
                last = segment.start + segment.length + row - segment.row
                read = slice(max(segment.start, last - window) if windowed else segment.start, last)
                wanted[row] = _plain(query[row], keys[read], values[read], beside)
        # By row: of many keys little is left, next to what a row of one key gets.
        far, size = (got - wanted).flatten(1).norm(dim=1), wanted.flatten(1).norm(dim=1)
        if not bool((far <= 2 * torch.finfo(dtype).eps * size).all()):
            return False
    return True


def _plain(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, sinks: torch.Tensor | None
) -> torch.Tensor:
    """What a row [heads, d] gets of keys and values [n, kv_heads, d], in fp32."""
    heads, dim = query.shape
    pools = (pool.float().repeat_interleave(heads // keys.shape[1], 1) for pool in (keys, values))
    key, value = pools
    scores = torch.einsum("hd,nhd->hn", query.float(), key) * dim**-0.5
    if sinks is not None:
        scores = torch.cat([scores, sinks.float()[:, None]], -1)
    return torch.einsum("hn,nhd->hd", scores.softmax(-1)[:, : len(key)], value)
