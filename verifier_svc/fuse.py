"""Replaces parts of a target by fused ones, where those give what the parts give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.nn import functional as F

from specwire.kernels import Reach, Segment
from verifier_svc.attention import AttentionPlan, Unsupported
from verifier_svc.blocks import BLOCK_SIZE
from verifier_svc.fused import FusedAttention, FusedMLP, FusedNorm

_Module = TypeVar("_Module", bound=torch.nn.Module)


@torch.inference_mode()
def fuse(module: torch.nn.Module) -> None:
    """Replace norms, MLPs and attention inside `module` by fused forms that give the same.

    Whether it does is tried, not read off names: architectures differ in details.
    """
    for name, child in list(module.named_children()):
        fused = None if _hooked(child) else _fused(child)
        if fused is None:
            fuse(child)
        else:
            setattr(module, name, fused)


def _hooked(module: torch.nn.Module) -> bool:
    """Whether a hook expects this module, or one inside it, to run."""
    return any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def _fused(module: Any) -> torch.nn.Module | None:
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight = getattr(module, "weight", None)
    if isinstance(eps, float) and isinstance(weight, torch.Tensor) and weight.dim() == 1:
        return _same(module, FusedNorm(weight, eps), weight, {})
    if gate_up := _linears(module, "gate_proj", "up_proj"):
        gate, up = gate_up
        if isinstance(down := getattr(module, "down_proj", None), torch.nn.Module):
            return _same(module, FusedMLP(gate, up, down), gate.weight, {})
    elif (qkv := _linears(module, "q_proj", "k_proj", "v_proj")) and hasattr(module, "head_dim"):
        fuse(module)  # norms of heads
        weight = qkv[0].weight
        kv_heads = qkv[1].out_features // module.head_dim
        around = _surroundings(module, module.head_dim, kv_heads, weight)
        return _same(module, FusedAttention(module), weight, around)
    return None


def _linears(module: Any, *names: str) -> list[torch.nn.Linear]:
    """These layers of a module, if it has them all, with a bias in all or in none."""
    layers = [getattr(module, name, None) for name in names]
    linears = [layer for layer in layers if isinstance(layer, torch.nn.Linear)]
    alike = len({linear.bias is None for linear in linears}) == 1
    return linears if alike and len(linears) == len(names) else []


def _surroundings(attention: Any, width: int, kv_heads: int, like: torch.Tensor) -> dict[str, Any]:
    """What attention of heads so wide is called with: three rows, and a cache for them."""
    angles = torch.arange(3, device=like.device)[:, None] / torch.arange(
        1, width // 2 + 1, device=like.device
    )
    angles = torch.cat([angles, angles], -1)[None]
    shape = BLOCK_SIZE, kv_heads, width
    pools = (like.new_zeros(shape),) * (attention.layer_idx + 1)
    values = (like.new_zeros(shape),) * (attention.layer_idx + 1)
    reach = Reach([Segment(0, 3, 0, 1)], block=BLOCK_SIZE)
    slots = torch.arange(3, device=like.device)
    return {
        "position_embeddings": (angles.cos().to(like), angles.sin().to(like)),
        "attention_mask": None,
        "plan": AttentionPlan(reach, slots, pools, values),
    }


def _same(
    module: Callable[..., Any], fused: _Module, weight: torch.Tensor, surroundings: dict[str, Any]
) -> _Module | None:
    """The fused module, if it maps some rows to what the module maps them to."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 3, weight.shape[-1], generator=generator).to(weight)
    try:
        expected, got = (_first(m(rows, **surroundings)) for m in (module, fused))
    except (Unsupported, TypeError):
        return None
    return fused if near(got, expected) else None


def near(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether two tensors differ by no more than rounding."""
    far = F.mse_loss(got.float(), wanted.float()).sqrt()
    return bool(far <= 2 * torch.finfo(wanted.dtype).eps * wanted.float().square().mean().sqrt())


def _first(output: Any) -> torch.Tensor:
    state: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return state
