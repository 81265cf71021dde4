"""Parts of a decoder layer with fewer operators than transformers' own take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import speckernels as kernels
from speckernels.packed_linear import PackedLinear, packable
from verifier_svc.model.decoder.attention import AttentionPlan, Scoring, Unsupported


class FusedNorm(torch.nn.Module):
    """An RMS norm of rows [..., width]."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        super().__init__()
        # A copy: a part of a mapped file, however small, would keep all of the file in memory.
        self.weight, self.eps = weight.detach().clone(), eps

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Norm rows [..., width]."""
        normed = kernels.rms_norm(rows.reshape(-1, rows.shape[-1]), self.weight, self.eps)
        return normed.view(rows.shape)


class FusedMLP(torch.nn.Module):
    """down(silu(gate(x)) * up(x)), gate and up as one product."""

    def __init__(self, gate: torch.nn.Linear, up: torch.nn.Linear, down: torch.nn.Module) -> None:
        super().__init__()
        self.gate_up = fuse_linears([gate, up])
        self.down = pack_linear(down)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Map rows [..., hidden] to [..., hidden]."""
        both = self.gate_up(rows.reshape(-1, rows.shape[-1]))
        output: torch.Tensor = self.down(kernels.silu_and_mul(both))
        return output.view(rows.shape)


class FusedAttention(torch.nn.Module):
    """Attention as Llama has it: one product, heads normed if they are, and turned in place."""

    def __init__(self, module: Any, scoring: Scoring) -> None:
        """Take over a module that has q_proj, k_proj, v_proj, o_proj, head_dim and layer_idx.

        `scoring` is what it asked for.
        """
        super().__init__()
        self.layer_idx: int = module.layer_idx
        self.width: int = module.head_dim
        self.scoring = scoring
        self.heads: int = module.q_proj.out_features // self.width
        self.kv_heads: int = module.k_proj.out_features // self.width
        self.qkv = fuse_linears([module.q_proj, module.k_proj, module.v_proj])
        self.norms = [getattr(module, name, None) for name in ("q_norm", "k_norm")]
        self.out = pack_linear(module.o_proj)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """Map hidden_states [1, rows, hidden]; cosines and sines are [1, rows, turned].

        Of each head the first `turned` elements are.

        Raises:
            Unsupported: outside of a forward that follows a plan.
        """
        if (plan := AttentionPlan.current()) is None:
            raise Unsupported("no batch is being run")
        rows = hidden_states.shape[1]
        qkv = self.qkv(hidden_states[0]).view(rows, -1, self.width)
        query, key, value = qkv.split((self.heads, self.kv_heads, self.kv_heads), 1)
        for norm, heads in zip(self.norms, (query, key), strict=True):
            if norm is not None:
                heads.copy_(norm(heads))
        cosines, sines = position_embeddings
        turning = qkv[:, : self.heads + self.kv_heads, : cosines.shape[-1]]
        kernels.apply_rope(turning, *plan.turned(cosines, sines))
        attended = plan.attend(self.layer_idx, query, key, value, self.scoring)
        output: torch.Tensor = self.out(attended.flatten(1)[None])
        return output, None


def fuse_linears(layers: Sequence[torch.nn.Linear]) -> torch.nn.Module:
    """Linear layers that read the same rows as one; all of them have a bias, or none."""
    weight = torch.cat([layer.weight for layer in layers]).detach()
    biases: list[torch.Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    one = torch.nn.Linear(weight.shape[1], len(weight), bool(biases), device="meta")
    one.weight = torch.nn.Parameter(weight, requires_grad=False)
    if biases:
        one.bias = torch.nn.Parameter(torch.cat(biases).detach(), requires_grad=False)
    return pack_linear(one)


def pack_linear(module: torch.nn.Module) -> torch.nn.Module:
    """A linear layer packed, where that is faster."""
    if isinstance(module, torch.nn.Linear) and packable(module.weight):
        return PackedLinear(module.weight, module.bias)
    return module
