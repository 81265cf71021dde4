"""Matrix products with constant bf16 weights, at the speed of reading them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from speckernels.huge_pages import huge_page_zeros
from speckernels.library import kernels_for, num_threads

# Rows of a tile, and elements of one.
_SIDE = 16
_DEEP = 2 * _SIDE

#: A bf16 result is within this share of the fp32 value that it was rounded from.
ROUNDING = 2.0**-8


def can_pack_tiles(weight: torch.Tensor) -> bool:
    """Whether there is a kernel for products with this weight [out, in]."""
    outputs, inputs = weight.shape
    if kernels_for(weight) is None or weight.dtype != torch.bfloat16:
        return False
    return outputs % _SIDE == 0 and inputs % _DEEP == 0


def pack_tiles(weight: torch.Tensor) -> torch.Tensor | None:
    """A bf16 weight [out, in] as the kernel reads it: [out / 16, in / 32, 16, 16, 2].

    None where there is no kernel for it.
    """
    if not can_pack_tiles(weight):
        return None
    outputs, inputs = weight.shape
    parts = weight.detach().reshape(outputs // _SIDE, _SIDE, inputs // _DEEP, _SIDE, 2)
    parts = parts.permute(0, 2, 3, 1, 4)
    return huge_page_zeros(tuple(parts.shape), parts.dtype).copy_(parts)


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A `pack_tiles` weight, and an fp32 bias [out] if there is one."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    @property
    def inputs(self) -> int:
        """Elements of a row that it maps."""
        return self.weight.shape[1] * _DEEP

    @property
    def outputs(self) -> int:
        """Elements of a result."""
        return self.weight.shape[0] * _SIDE


def linear(
    rows: torch.Tensor, product: PackedWeight, dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    """The product with bf16 rows [..., in], bias added: [..., out], in bf16 or fp32."""
    rows = rows.contiguous()
    out = rows.new_empty(*rows.shape[:-1], product.outputs, dtype=dtype)
    kernels = kernels_for(rows)
    assert kernels is not None, "weights are tiled where there are kernels"
    kernels.hc_linear(
        dtype == torch.bfloat16,
        rows.data_ptr(),
        product.weight.data_ptr(),
        None if product.bias is None else product.bias.data_ptr(),
        out.data_ptr(),
        rows.numel() // product.inputs,
        product.outputs,
        product.inputs,
        num_threads(),
    )
    return out


def argmax_logits(rows: torch.Tensor, product: PackedWeight) -> torch.Tensor:
    """The largest result of the product for each of rows [n, in], exactly: int64 [n].

    Ties go to the first. -1 stands for a row that has a NaN, or no finite largest.
    """
    rows = rows.contiguous()
    kernels = kernels_for(rows)
    assert kernels is not None, "weights are tiled where there are kernels"
    room = rows.new_empty(len(rows), product.outputs)
    winners = torch.empty(len(rows), dtype=torch.int64)
    kernels.hc_argmax(
        rows.data_ptr(),
        product.weight.data_ptr(),
        None if product.bias is None else product.bias.data_ptr(),
        room.data_ptr(),
        *room.shape,
        product.inputs,
        2 * ROUNDING,
        winners.data_ptr(),
        num_threads(),
    )
    return winners
