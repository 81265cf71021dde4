"""Stands in for what needs a GPU: FlashAttention by its documented rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import varlen

from specwire.kernels import attention, called
from verifier_svc import graph


def varlen_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: torch.Tensor,
) -> torch.Tensor:
    """Rows of a sequence see its keys but for as many as rows follow: causal from the end.

    `window_size` is how many keys before its own a row sees, and behind it; -1 is all of them.
    """
    left, right = window_size
    assert right == (0 if max_q > 1 or left >= 0 else -1)
    assert enable_gqa == (query.shape[1] > key.shape[1])
    assert {t.dtype for t in (cu_seq_q, cu_seq_k, seqused_k)} == {torch.int32}
    assert all(t.is_contiguous() for t in (cu_seq_q, cu_seq_k, seqused_k, key, value))
    assert len(cu_seq_q) == len(cu_seq_k) == len(seqused_k) + 1
    assert cu_seq_q[0] == 0
    assert cu_seq_q[-1] == len(query)
    assert max_q > 1 or (cu_seq_q.diff() == 1).all(), "it takes one row of each"
    # What no sequence asks for holds whatever was in memory.
    out = torch.full_like(query, torch.nan)
    for sequence, length in enumerate(seqused_k.tolist()):
        first, last = cu_seq_q[sequence : sequence + 2].tolist()
        if (count := last - first) == 0:
            continue
        assert count <= max_q
        assert count <= length <= max_k
        slots = slice(int(cu_seq_k[sequence]), int(cu_seq_k[sequence]) + length)
        seen = torch.ones(count, length, dtype=torch.bool).tril(length - count)
        if left >= 0:
            seen = seen.triu(length - count - left)
        keys, values = (pool[slots].transpose(0, 1) for pool in (key, value))
        asked = query[first:last].transpose(0, 1)
        out[first:last] = F.scaled_dot_product_attention(
            asked, keys, values, attn_mask=seen, scale=scale, enable_gqa=enable_gqa
        ).transpose(0, 1)
    return out


def serve_flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attend by FlashAttention's rule on the CPU; on `meta` by its own shapes."""
    real = varlen.varlen_attn

    def attend(query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return (real if query.is_meta else varlen_attn)(query, *args, **kwargs)

    monkeypatch.setattr(varlen, "varlen_attn", attend)
    monkeypatch.setattr(attention, "flash_serves", lambda *_: True)


def record_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders that are loaded from now on run as on a GPU."""
    serve_flash(monkeypatch)
    monkeypatch.setattr(graph, "flash_serves", lambda *_: True)
    monkeypatch.setattr(graph, "Recorder", lambda: called)
