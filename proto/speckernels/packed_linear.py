"""Linear layers whose weights are laid out as the kernel reads them."""

from __future__ import annotations

import torch

import speckernels as kernels


def packable(weight: torch.Tensor) -> bool:
    """Whether a product with this weight is faster once packed: bf16 on a CPU, ours or oneDNN's."""
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return False
    return kernels.can_pack_tiles(weight) or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedLinear(torch.nn.Module):
    """A linear layer of bf16 weights [out, in] on a CPU, laid out as its kernel reads them.

    That is our own where it applies, and else oneDNN's, for which torch's linear lays them out
    anew in every call: that costs small batches half as much again as the product itself.
    """

    # Rows for which oneDNN chooses the layout; others work with it.
    _ROWS = 8

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        tiled = kernels.pack_tiles(weight)
        self._bias = None if bias is None else bias.detach()
        # For our own kernel, or None.
        self.product: kernels.PackedWeight | None = None
        if tiled is not None:
            self.product = kernels.PackedWeight(
                tiled, None if bias is None else bias.detach().float()
            )
            return
        self._packed = torch.ops.mkldnn._reorder_linear_weight(
            weight.detach().contiguous(), self._ROWS
        )
        self._onednn = torch.ops.mkldnn._linear_pointwise.default

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Map [..., in] to [..., out]."""
        if self.product is not None:
            return kernels.linear(rows, self.product)
        product: torch.Tensor = self._onednn(rows, self._packed, self._bias, "none", [], "")
        return product


def pack_linears(module: torch.nn.Module) -> None:
    """Replace the linear layers inside `module` by packed ones, where that is faster."""
    for name, child in list(module.named_children()):
        if isinstance(child, torch.nn.Linear) and packable(child.weight):
            setattr(module, name, PackedLinear(child.weight, child.bias))
        else:
            pack_linears(child)
