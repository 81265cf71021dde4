"""A whole decoder layer as one kernel, for steps that only decode."""

from __future__ import annotations

from typing import Any

import torch

from specwire.kernels import Decoder, DecoderBatch, DecoderWeights
from specwire.torch import PackedLinear
from verifier_svc.attention import AttentionPlan
from verifier_svc.fused import FusedAttention, FusedMLP, FusedNorm

# Halves of a head are turned sixteen elements at a time.
_HEAD_STEP = 32
_PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}


class FusedLayer(torch.nn.Module):
    """A layer of fused parts, which it runs as one kernel where no sequence has many rows."""

    def __init__(self, layer: torch.nn.Module, decoder: Decoder) -> None:
        super().__init__()
        self.layer = layer
        self._decoder = decoder

    @classmethod
    def of(cls, layer: Any) -> FusedLayer | None:
        """The form of a layer whose parts are fused; None if the kernel cannot run them."""
        if {name for name, _ in layer.named_children()} != _PARTS:
            return None
        attention, mlp = layer.self_attn, layer.mlp
        norms = layer.input_layernorm, layer.post_attention_layernorm
        if not (
            isinstance(attention, FusedAttention)
            and isinstance(mlp, FusedMLP)
            and all(isinstance(norm, FusedNorm) for norm in norms)
            and norms[0].eps == norms[1].eps
            and attention.width % _HEAD_STEP == 0
        ):
            return None
        linears = (attention.qkv, attention.out, mlp.gate_up, mlp.down)
        products = [each.product for each in linears if isinstance(each, PackedLinear)]
        tiled = [product for product in products if product is not None]
        heads = [norm for norm in attention.norms if isinstance(norm, FusedNorm)]
        if len(tiled) < len(linears) or (any(attention.norms) and len(heads) < 2):
            return None
        qkv, out, gate_up, down = tiled
        weights = DecoderWeights(
            input_norm=norms[0].weight,
            post_norm=norms[1].weight,
            query_norm=heads[0].weight if heads else None,
            key_norm=heads[1].weight if heads else None,
            qkv=qkv,
            out=out,
            gate_up=gate_up,
            down=down,
            heads=attention.heads,
            kv_heads=attention.kv_heads,
            dim=attention.width,
            eps=norms[0].eps,
            head_eps=heads[0].eps if heads else 0.0,
            scale=attention.scale,
        )
        return cls(layer, Decoder(weights))

    @property
    def self_attn(self) -> Any:
        """The layer's attention."""
        return self.layer.self_attn

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        plan: AttentionPlan,
        **others: Any,
    ) -> torch.Tensor:
        """Map hidden_states [1, rows, hidden]; cosines and sines are [1, rows, head_dim]."""
        if not plan.reach.many:
            if plan.batch is None:
                cosines, sines, _ = plan.turned(*position_embeddings)
                plan.batch = DecoderBatch(cosines, sines, plan.slots, plan.reach)
            index: int = self.self_attn.layer_idx
            states = hidden_states[0].contiguous()
            out = self._decoder.run(states, plan.batch, plan.keys[index], plan.values[index])
            if out is not None:
                return out[None]
        output: torch.Tensor = self.layer(
            hidden_states, position_embeddings=position_embeddings, plan=plan, **others
        )
        return output
