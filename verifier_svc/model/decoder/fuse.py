"""Replaces parts of a target by fused ones, where those give what the parts give."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch.nn import functional as F

from speckernels import AttentionMetadata, QuerySegment
from verifier_svc.kv.block_pool import BLOCK_SIZE
from verifier_svc.model.decoder.attention import AttentionPlan, Scoring
from verifier_svc.model.decoder.fused_layers import FusedAttention, FusedMLP, FusedNorm

logger = logging.getLogger(__name__)


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
    """A fused form of this very module that gives the same; None where there is none."""
    try:
        return _norm(module) or _mlp(module) or _attention(module)
    except Exception:
        # Architectures fail a trial in as many ways as they differ from what is fused.
        logger.debug("%s is not fused", type(module).__name__, exc_info=True)
        return None


def _norm(module: Any) -> torch.nn.Module | None:
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight = getattr(module, "weight", None)
    if not (isinstance(eps, float) and isinstance(weight, torch.Tensor) and weight.dim() == 1):
        return None
    fused, rows = FusedNorm(weight, eps), _rows(weight)
    return fused if is_close(fused(rows), module(rows)) else None


def _mlp(module: Any) -> torch.nn.Module | None:
    if not (gate_up := _linears(module, "gate_proj", "up_proj")):
        return None
    gate, up = gate_up
    fused, rows = FusedMLP(gate, up, module.down_proj), _rows(gate.weight)
    return fused if is_close(fused(rows), module(rows)) else None


def _attention(module: Any) -> torch.nn.Module | None:
    if not (qkv := _linears(module, "q_proj", "k_proj", "v_proj")) or not hasattr(module, "o_proj"):
        return None
    fuse(module)  # norms of heads
    weight, width = qkv[0].weight, module.head_dim
    rows, kv_heads = _rows(weight), qkv[1].out_features // width

    def attended(part: Any, turned: int) -> tuple[torch.Tensor, Scoring]:
        plan = _plan(module.layer_idx, kv_heads, width, weight)
        with plan.followed():
            return part(rows, **_surroundings(turned, weight))[0], plan.scored[module.layer_idx]

    expected, scoring = attended(module, width)
    fused = FusedAttention(module, scoring)
    if not is_close(attended(fused, width)[0], expected):
        return None
    try:  # some turn a part of each head
        expected, _ = attended(module, width // 2)
    except RuntimeError:
        return fused
    return fused if is_close(attended(fused, width // 2)[0], expected) else None


def _linears(module: Any, *names: str) -> list[torch.nn.Linear]:
    """These layers of a module, if it has them all, with a bias in all or in none."""
    layers = [getattr(module, name, None) for name in names]
    linears = [layer for layer in layers if isinstance(layer, torch.nn.Linear)]
    alike = len({linear.bias is None for linear in linears}) == 1
    return linears if alike and len(linears) == len(names) else []


def _surroundings(width: int, like: torch.Tensor) -> dict[str, Any]:
    """What attention is called with for three rows, to turn so many elements of a head."""
    angles = torch.arange(3, device=like.device)[:, None] / torch.arange(
        1, width // 2 + 1, device=like.device
    )
    angles = torch.cat([angles, angles], -1)[None]
    return {
        "position_embeddings": (angles.cos().to(like), angles.sin().to(like)),
        "attention_mask": None,
    }


def _plan(layer: int, kv_heads: int, width: int, like: torch.Tensor) -> AttentionPlan:
    """Three rows of a prompt, and a cache for them up to this layer."""
    shape = BLOCK_SIZE, kv_heads, width
    keys, values = ((like.new_zeros(shape),) * (layer + 1) for _ in "kv")
    reach = AttentionMetadata([QuerySegment(0, 3, 0, 1)], block=BLOCK_SIZE)
    return AttentionPlan(reach, torch.arange(3, device=like.device), keys, values)


def _rows(weight: torch.Tensor) -> torch.Tensor:
    """Three rows that a layer of this weight takes."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 3, weight.shape[-1], generator=generator).to(weight)


def is_close(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether two tensors differ by no more than rounding."""
    far = F.mse_loss(got.float(), wanted.float()).sqrt()
    return bool(far <= 2 * torch.finfo(wanted.dtype).eps * wanted.float().square().mean().sqrt())
