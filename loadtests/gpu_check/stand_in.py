"""What a CPU has in place of a GPU: FlashAttention by its rule, and work called where recorded."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.nn import functional as F

import speckernels as kernels
from speckernels import attention
from verifier_svc.model.decoder import cuda_graph_backend, select_backend


@cache
def stand_in() -> None:
    """Let decoders and chains of this process run on the CPU as they do on a GPU."""
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    library.impl("_flash_attention_forward", _flash_attention_forward, "CPU")
    _kept.append(library)
    modules: list[Any] = [attention, cuda_graph_backend, select_backend]
    modules[0].flash_serves = lambda *_: True
    modules[1].flash_refusal = lambda *_: None
    modules[2].CudaGraphCapture = lambda device: kernels.eager_capture


# What a library registers goes with it.
_kept: list[Any] = []


def _flash_attention_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cum_seq_q: torch.Tensor,
    cum_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    seqused_k: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, ...]:
    """`aten::_flash_attention_forward` of packed rows, whose last one sees its last key.

    Rows see `window_size_left` keys before their own and `window_size_right` behind it; all with
    None or a negative number. Returns the result with log-sum-exps [heads, rows].
    """
    left, right = (-1 if w is None else w for w in (window_size_left, window_size_right))
    if is_causal:
        right = 0
    # Rows that no segment has hold whatever was in memory.
    out = torch.full_like(query, torch.nan)
    sums = query.new_full((query.shape[1], len(query)), torch.inf, dtype=torch.float32)
    for segment, length in enumerate(seqused_k.tolist()):
        first, last = cum_seq_q[segment : segment + 2].tolist()
        if first == last:
            continue
        slots = slice(int(cum_seq_k[segment]), int(cum_seq_k[segment]) + length)
        own = torch.arange(length - (last - first), length)[:, None]
        keys = torch.arange(length)
        seen = torch.ones(last - first, length, dtype=torch.bool)
        if right >= 0:
            seen &= keys <= own + right
        if left >= 0:
            seen &= keys >= own - left
        asked, read, held = (
            t.transpose(0, 1) for t in (query[first:last], key[slots], value[slots])
        )
        read, held = (t.repeat_interleave(len(asked) // len(t), 0) for t in (read, held))
        out[first:last] = F.scaled_dot_product_attention(
            asked, read, held, attn_mask=seen, scale=scale
        ).transpose(0, 1)
        scores = (asked.float() @ read.float().transpose(1, 2) * scale).masked_fill(
            ~seen, -torch.inf
        )
        sums[:, first:last] = scores.logsumexp(-1)
    nothing = torch.zeros(2, dtype=torch.uint64)
    return out, sums, nothing, query.new_empty(0), query.new_empty(0)
