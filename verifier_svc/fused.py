"""Parts of a decoder layer with fewer operators than transformers' own take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from specwire import kernels
from specwire.torch import PackedLinear, packable
from verifier_svc.attention import AttentionPlan


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

    def __init__(self, gate: torch.nn.Linear, up: torch.nn.Linear, down: torch.nn.Module) -> None:
        super().__init__()
        self._gate_up = joined([gate, up])
        self._down = down

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Map rows [..., hidden] to [..., hidden]."""
        both = self._gate_up(rows.reshape(-1, rows.shape[-1]))
        output: torch.Tensor = self._down(kernels.gate(both))
        return output.view(rows.shape)


class FusedAttention(torch.nn.Module):
    """Attention as Llama has it: one product, heads normed if they are, and turned in place."""

    def __init__(self, module: Any) -> None:
        """Take over a module that has q_proj, k_proj, v_proj, o_proj, head_dim and layer_idx."""
        super().__init__()
        self.layer_idx: int = module.layer_idx
        self._width: int = module.head_dim
        self._scale: float = getattr(module, "scaling", self._width**-0.5)
        self._heads = module.q_proj.out_features // self._width
        self._kv_heads = module.k_proj.out_features // self._width
        self._qkv = joined([module.q_proj, module.k_proj, module.v_proj])
        self._norms = [getattr(module, name, None) for name in ("q_norm", "k_norm")]
        self._out = module.o_proj

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        plan: AttentionPlan,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """Map hidden_states [1, rows, hidden]; cosines and sines are [1, rows, head_dim]."""
        rows = hidden_states.shape[1]
        qkv = self._qkv(hidden_states[0]).view(rows, -1, self._width)
        query, key, value = qkv.split((self._heads, self._kv_heads, self._kv_heads), 1)
        for norm, heads in zip(self._norms, (query, key), strict=True):
            if norm is not None:
                heads.copy_(norm(heads))
        if plan.rotation is None:
            plan.rotation = _rotation(*position_embeddings)
        kernels.rotate(qkv[:, : self._heads + self._kv_heads], *plan.rotation)
        attended = plan.attend(self.layer_idx, query, key, value, self._scale)
        output: torch.Tensor = self._out(attended.flatten(1)[None])
        return output, None


def joined(layers: Sequence[torch.nn.Linear]) -> torch.nn.Module:
    """Linear layers that read the same rows as one; all of them have a bias, or none."""
    weight = torch.cat([layer.weight for layer in layers]).detach()
    biases: list[torch.Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    bias = torch.cat(biases).detach() if biases else None
    if packable(weight):
        return PackedLinear(weight, bias)
    one = torch.nn.Linear(weight.shape[1], len(weight), bias is not None, device="meta")
    one.weight = torch.nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        one.bias = torch.nn.Parameter(bias, requires_grad=False)
    return one


def _rotation(
    cosines: torch.Tensor, sines: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `kernels.rotate` takes, from transformers' tables [1, rows, head_dim]."""
    half = cosines.shape[-1] // 2
    signed = torch.cat([-sines[0, :, None, :half], sines[0, :, None, half:]], -1)
    positions = torch.arange(cosines.shape[1], device=cosines.device)
    return cosines[0, :, None].contiguous(), signed, positions
