"""Small steps of a target's layers in one pass each, where that gives what the layers give."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from specwire import kernels
from specwire.torch import PackedLinear, packable


class FusedNorm(torch.nn.Module):
    """An RMS norm of rows [..., width]."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        super().__init__()
        self._weight, self._eps = weight.detach(), eps

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Norm rows [..., width]."""
        normed = kernels.norm(rows.reshape(-1, rows.shape[-1]), self._weight, self._eps)
        return normed.view(rows.shape)


class FusedMLP(torch.nn.Module):
    """down(silu(gate(x)) * up(x)), gate and up as one product."""

    def __init__(self, gate: torch.nn.Linear, up: torch.nn.Linear, down: torch.nn.Linear) -> None:
        super().__init__()
        biases = [linear.bias for linear in (gate, up) if linear.bias is not None]
        self._gate_up = PackedLinear(
            torch.cat([gate.weight, up.weight]), torch.cat(biases) if biases else None
        )
        self._down = PackedLinear(down.weight, down.bias)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Map rows [..., hidden] to [..., hidden]."""
        both = self._gate_up(rows.reshape(-1, rows.shape[-1]))
        output: torch.Tensor = self._down(kernels.gate(both))
        return output.view(rows.shape)


@torch.inference_mode()
def fuse(module: torch.nn.Module) -> None:
    """Replace norms and MLPs inside `module` for which a fused form gives the same results.

    Whether it does is tried, not read off names: architectures differ in details.
    """
    for name, child in list(module.named_children()):
        fused = None if _hooked(child) else _fused(child)
        if fused is not None:
            setattr(module, name, fused)
        else:
            fuse(child)


def _hooked(module: torch.nn.Module) -> bool:
    """Whether a hook expects this module, or one inside it, to run."""
    return any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def _fused(module: Any) -> torch.nn.Module | None:
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight = getattr(module, "weight", None)
    if isinstance(eps, float) and isinstance(weight, torch.Tensor) and weight.dim() == 1:
        return _same(module, FusedNorm(weight, eps), weight)
    parts = [getattr(module, f"{name}_proj", None) for name in ("gate", "up", "down")]
    gate, up, down = parts
    if (
        isinstance(gate, torch.nn.Linear)
        and isinstance(up, torch.nn.Linear)
        and isinstance(down, torch.nn.Linear)
        and packable(gate.weight)
        and (gate.bias is None) == (up.bias is None)
    ):
        return _same(module, FusedMLP(gate, up, down), gate.weight)
    return None


def _same(
    module: torch.nn.Module, fused: torch.nn.Module, weight: torch.Tensor
) -> torch.nn.Module | None:
    """The fused module, if it maps some rows to what the module maps them to."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 3, weight.shape[-1], generator=generator).to(weight)
    expected, got = module(rows).float(), fused(rows).float()
    far = F.mse_loss(got, expected).sqrt() / expected.square().mean().sqrt()
    return fused if far < 2 * torch.finfo(weight.dtype).eps else None
