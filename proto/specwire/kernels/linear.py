"""Matrix products with constant bf16 weights, at the speed of reading them."""

from __future__ import annotations

import torch

from specwire.kernels.library import kernels_for, threads

# Sides of a tile, and results side by side.
_SIDE = 16
_PAIR = 2 * _SIDE


def tiled(weight: torch.Tensor) -> torch.Tensor | None:
    """A bf16 weight [out, in] as `linear` reads it: [out / 32, in / 32, 2, 16, 16, 2].

    None where there is no kernel for it: it takes a CPU with matrix tiles (AMX).
    """
    outputs, inputs = weight.shape
    kernels = kernels_for(weight)
    if kernels is None or weight.dtype != torch.bfloat16 or outputs % _PAIR or inputs % _PAIR:
        return None
    if kernels.hc_start_tiles():
        return None
    parts = weight.detach().reshape(outputs // _PAIR, 2, _SIDE, inputs // _PAIR, _SIDE, 2)
    return parts.permute(0, 3, 1, 4, 2, 5).contiguous()


def linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The product of bf16 rows [..., in] with a `tiled` weight, and an fp32 bias: [..., out]."""
    inputs, outputs = weight.shape[1] * _PAIR, weight.shape[0] * _PAIR
    rows = rows.contiguous()
    out = rows.new_empty(*rows.shape[:-1], outputs)
    kernels = kernels_for(rows)
    assert kernels is not None, "weights are tiled where there are kernels"
    kernels.hc_linear(
        rows.data_ptr(),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        rows.numel() // inputs,
        outputs,
        inputs,
        threads(),
    )
    return out
