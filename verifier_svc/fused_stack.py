"""All decoder layers as one kernel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from specwire.kernels import Decoder, DecoderMemory, DecoderWeights
from specwire.torch import PackedLinear
from verifier_svc.attention import AttentionPlan
from verifier_svc.fused import FusedAttention, FusedMLP, FusedNorm

# Halves of a head are turned sixteen elements at a time.
_HEAD_STEP = 32
_PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}


class FusedStack(torch.nn.Module):
    """Layers of fused parts, which it runs as one kernel."""

    def __init__(self, layers: Iterable[torch.nn.Module], decoder: Decoder) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)
        self._decoder = decoder
        # The number of a layer in the cache.
        attentions: list[Any] = [layer.self_attn for layer in self.layers]
        self._places: list[int] = [attention.layer_idx for attention in attentions]

    @classmethod
    def of(cls, layers: Iterable[torch.nn.Module]) -> FusedStack | None:
        """The form of layers whose parts are fused; None if the kernel cannot run them all."""
        layers = list(layers)
        weights = [each for layer in layers if (each := _weights(layer)) is not None]
        if not layers or len(weights) < len(layers):
            return None
        return cls(layers, Decoder(weights))

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        plan: AttentionPlan,
        captured: dict[int, torch.Tensor],
        **others: Any,
    ) -> torch.Tensor:
        """Map hidden_states [1, rows, hidden]; cosines and sines are [1, rows, head_dim].

        `captured` is filled with what its keys name: the input [rows, hidden] to the layer of
        that number, or the output of the last one.
        """
        states = hidden_states[0]
        out = self._run(states, position_embeddings, plan, captured)
        if out is None:
            return self.one_by_one(
                hidden_states,
                position_embeddings=position_embeddings,
                plan=plan,
                captured=captured,
                **others,
            )
        if len(self.layers) in captured:
            captured[len(self.layers)] = out
        return out[None]

    def one_by_one(self, hidden_states: torch.Tensor, **others: Any) -> torch.Tensor:
        """The same by the layers themselves, whose hooks capture."""
        for layer in self.layers:
            hidden_states = layer(hidden_states, **others)
        return hidden_states

    def _run(
        self,
        states: torch.Tensor,
        embeddings: tuple[torch.Tensor, torch.Tensor],
        plan: AttentionPlan,
        captured: dict[int, torch.Tensor],
    ) -> torch.Tensor | None:
        rotation = plan.turned(*embeddings)
        for index in captured:
            if index < len(self.layers):
                captured[index] = torch.empty_like(states)
        memories = [
            DecoderMemory(plan.keys[place], plan.values[place], captured.get(index))
            for index, place in enumerate(self._places)
        ]
        return self._decoder.run(states, rotation, plan.slots, plan.reach, memories)


def _weights(layer: Any) -> DecoderWeights | None:
    """A layer's weights as the kernel takes them; None if it is of another form."""
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
    return DecoderWeights(
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
