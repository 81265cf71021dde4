"""What a decoder layer does between its matrix products, over packed rows."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from speckernels.library import kernels_for

# Elements that the kernels take at a time.
_LANES = 16


def embed_and_norm(
    embedding: torch.Tensor,
    tokens: torch.Tensor,
    state: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """Rows of embedding [vocab, H] at tokens [T], and RMSNorm of state [T, H]: [T, 2 * H]."""
    rows, width = state.shape
    kernels = kernels_for(state, embedding, weight)
    if kernels is None or width % _LANES or not (_whole(embedding, tokens)):
        normed = F.rms_norm(state, (width,), weight, eps)
        return torch.cat([F.embedding(tokens, embedding), normed], dim=-1)
    out = state.new_empty(rows, 2 * width)
    kernels.hc_join(
        state.dtype == torch.bfloat16,
        embedding.data_ptr(),
        tokens.data_ptr(),
        state.data_ptr(),
        state.stride(0),
        weight.data_ptr(),
        rows,
        width,
        eps,
        out.data_ptr(),
    )
    return out


def fused_add_rms_norm(
    base: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of base and delta [T, H], and its RMSNorm."""
    rows, width = base.shape
    kernels = kernels_for(base, delta, weight)
    if kernels is None or width % _LANES or not _whole(delta):
        total = base + delta
        return total, F.rms_norm(total, (width,), weight, eps)
    total, normed = torch.empty_like(delta), torch.empty_like(delta)
    kernels.hc_add_norm(
        base.dtype == torch.bfloat16,
        base.data_ptr(),
        base.stride(0),
        delta.data_ptr(),
        weight.data_ptr(),
        rows,
        width,
        eps,
        total.data_ptr(),
        normed.data_ptr(),
    )
    return total, normed


def rms_norm(rows: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm of rows [T, H]."""
    count, width = rows.shape
    kernels = kernels_for(rows, weight)
    if kernels is None or width % _LANES:
        return F.rms_norm(rows, (width,), weight, eps)
    out = rows.new_empty(count, width)
    kernels.hc_add_norm(
        rows.dtype == torch.bfloat16,
        rows.data_ptr(),
        rows.stride(0),
        None,
        weight.data_ptr(),
        count,
        width,
        eps,
        None,
        out.data_ptr(),
    )
    return out


def apply_rope(
    heads: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    positions: torch.Tensor | None,
) -> None:
    """Apply RoPE to heads [T, n, d] in place, rows of any stride.

    Tables are [positions, 1, d], the first half of the sines negated; positions int64 [T]. Without
    positions, which kernels ask for, the tables are those of the rows.
    """
    rows, count, width = heads.shape
    kernels = kernels_for(heads, cosines, sines)
    fits = width % (2 * _LANES) == 0 and heads.stride(1) == width
    if kernels is None or positions is None or not fits or not _whole(cosines, sines, positions):
        if positions is not None:
            cosines, sines = cosines[positions], sines[positions]
        first, second = heads.chunk(2, dim=-1)
        swapped = torch.cat([second, first], dim=-1)
        torch.addcmul(heads * cosines, swapped, sines, out=heads)
        return
    kernels.hc_rotate(
        heads.dtype == torch.bfloat16,
        heads.data_ptr(),
        heads.stride(0),
        cosines.data_ptr(),
        sines.data_ptr(),
        positions.data_ptr(),
        rows,
        count,
        width,
    )


def silu_and_mul(both: torch.Tensor) -> torch.Tensor:
    """silu(first half) * second half of rows [T, 2 * I]: [T, I]."""
    rows, width = both.shape[0], both.shape[1] // 2
    kernels = kernels_for(both)
    if kernels is None or width % _LANES or not _whole(both):
        first, second = both.chunk(2, dim=-1)
        return F.silu(first) * second
    out = both.new_empty(rows, width)
    kernels.hc_gate(both.dtype == torch.bfloat16, both.data_ptr(), rows, width, out.data_ptr())
    return out


def _whole(*tensors: torch.Tensor) -> bool:
    return all(tensor.is_contiguous() for tensor in tensors)
