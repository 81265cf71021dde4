"""Attention of packed rows over a cache of slots."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from specwire.kernels.library import kernels_for, threads

# Consecutive rows of one sequence from which on matrix products beat rows that run alone.
_LONG = 16


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Attend row r to the slots [starts[r], starts[r] + lengths[r]).

    Args:
        query: [rows, heads, d], rows of any stride.
        keys: [slots, kv_heads, d]; `heads` is a multiple of `kv_heads`.
        values: as `keys`.
        starts: int64 [rows].
        lengths: int64 [rows], at least 1.
        scale: of the scores.

    Returns [rows, heads, d], contiguous.
    """
    kernels = kernels_for(query, keys, values)
    if kernels is None or not (keys.is_contiguous() and values.is_contiguous()):
        return _attend(query, keys, values, starts, lengths, scale)
    rows, heads, d = query.shape
    if rows >= _LONG and any(count >= _LONG for _, _, count in _runs(starts, lengths)):
        return _attend(query, keys, values, starts, lengths, scale)
    if query.stride(1) != d:
        query = query.contiguous()
    out = query.new_empty(rows, heads, d)
    done = kernels.hc_attend(
        query.dtype == torch.bfloat16,
        d,
        query.data_ptr(),
        query.stride(0),
        keys.data_ptr(),
        values.data_ptr(),
        keys.stride(0),
        starts.data_ptr(),
        lengths.data_ptr(),
        rows,
        heads,
        keys.shape[1],
        scale,
        out.data_ptr(),
        threads(),
    )
    return out if done else _attend(query, keys, values, starts, lengths, scale)


def _runs(starts: torch.Tensor, lengths: torch.Tensor) -> list[tuple[int, int, int]]:
    """Consecutive rows of one sequence: its start, the first row's length, and the rows."""
    runs: list[tuple[int, int, int]] = []
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        if runs and runs[-1][0] == start and runs[-1][1] + runs[-1][2] == length:
            runs[-1] = (start, runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((start, length, 1))
    return runs


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    heads, d = query.shape[1:]
    kv_heads = keys.shape[1]
    pieces = []
    at = 0
    for start, length, count in _runs(starts, lengths):
        reach = slice(start, start + length + count - 1)
        # The heads of a group read the same keys: they are folded into the rows.
        folded = query[at : at + count].view(count, kv_heads, -1, d).transpose(0, 1)
        out = F.scaled_dot_product_attention(
            folded.reshape(1, kv_heads, -1, d),
            keys[reach].transpose(0, 1)[None],
            values[reach].transpose(0, 1)[None],
            attn_mask=_causal(length, count, heads // kv_heads, query.device),
            scale=scale,
        )
        pieces.append(out.view(kv_heads, count, -1, d).transpose(0, 1).reshape(count, heads, d))
        at += count
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _causal(length: int, count: int, group: int, device: torch.device) -> torch.Tensor | None:
    """Each of the last `count` rows sees the past and itself; no mask for a single one."""
    if count == 1:
        return None
    last = torch.arange(length, length + count, device=device).repeat_interleave(group)
    return torch.arange(length + count - 1, device=device) < last[:, None]
