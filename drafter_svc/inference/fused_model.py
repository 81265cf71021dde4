"""The drafter's forward pass as it is served: the same function as ``EagleDrafter``, fewer calls.

A chain step is short enough that each operator call counts. Projections that read the same rows
are one product, RoPE is a table, and the target's embeddings are normalized once at the start.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import speckernels as kernels
from drafter_svc.inference.attention import Attention
from drafter_svc.inference.linear import Linear, pack_linear, product_of
from drafter_svc.model.config import DrafterConfig
from drafter_svc.model.eagle import EagleDrafter
from drafter_svc.model.feature_projection import feature_norms
from drafter_svc.model.rope import Rope
from speckernels.projection import FeatureProjection

#: Cosines and sines of all positions, and the rows' positions int64 ``[T]``.
_Rotation = tuple[Tensor, Tensor, Tensor]

# Halves of a head are turned sixteen elements at a time.
_HEAD_STEP = 32


class FusedDrafter:
    """An ``EagleDrafter`` with its embeddings, over packed rows ``[T, ...]``."""

    def __init__(self, module: EagleDrafter, embedding: Tensor, positions: int) -> None:
        """Take the embedding ``[vocab, H]`` and how many positions can occur."""
        config, first = module.config, module.midlayer
        self.config = config
        self.dtype, self.device = module.norm.weight.dtype, module.norm.weight.device
        self._eps = config.rms_norm_eps
        self._fc = None if config.mtp_head else pack_linear(module.fc.weight)
        self._project = FeatureProjection(feature_norms(module), self._eps, self._fc)
        embedding = embedding.to(self.device, self.dtype)
        self._embedding = self._norm(embedding, first.input_layernorm.weight)
        self._hidden_norm = first.hidden_norm.weight
        self._join = pack_linear(first.eh_proj.weight) if config.mtp_head else None
        layers: list[Any] = [first.layer if config.mtp_head else first, *module.layers.values()]
        self._layers = [_FusedLayer(layer, config, i) for i, layer in enumerate(layers)]
        # Of EAGLE-3's first layer it is that of the embeddings, which are normed.
        self._input_norms = [layer.input_layernorm.weight for layer in layers]
        self._final_norm = module.norm.weight
        self._lm_head = pack_linear(module.lm_head.weight)
        rope = Rope(
            config.head_dim, config.rope_theta, config.rope_scaling, config.max_position_embeddings
        )
        cosines, sines = rope(torch.arange(positions, device=self.device))
        half = config.head_dim // 2
        self._cos = cosines.to(self.dtype)
        self._sin = torch.cat([-sines[..., :half], sines[..., half:]], dim=-1).to(self.dtype)

    def _norm(self, rows: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(rows, rows.shape[-1:], weight, self._eps)

    def fuse(self, features: Tensor) -> Tensor:
        """Target features ``[T, captured * H]`` of the weights' dtype to states ``[T, H]``.

        Those that a verifier has projected are states already.
        """
        width = len(self.config.aux_layers) * self.config.target_hidden_size
        return self._project(features) if features.shape[1] == width else features

    def layer(
        self, tokens: Tensor, state: Tensor, positions: Tensor, attention: Attention
    ) -> Tensor:
        """The output ``[T, H]`` of the last decoder layer, before the final norm.

        ``tokens`` are target ids and ``positions`` the entries' own, both int64 ``[T]``.
        """
        rotation = self._cos, self._sin, positions
        rows, residual = self._before_last(tokens, state, rotation, attention)
        return self._layers[-1].run(rows, residual, rotation, attention)

    def keep(self, tokens: Tensor, state: Tensor, positions: Tensor, attention: Attention) -> None:
        """Keep the keys and values that `layer` does, and stop there."""
        rotation = self._cos, self._sin, positions
        rows, _ = self._before_last(tokens, state, rotation, attention)
        self._layers[-1].keep(rows, rotation, attention)

    def _before_last(
        self, tokens: Tensor, state: Tensor, rotation: _Rotation, attention: Attention
    ) -> tuple[Tensor, Tensor]:
        """Normed input of the last layer, and the residual that it adds to."""
        rows = kernels.embed_and_norm(self._embedding, tokens, state, self._hidden_norm, self._eps)
        if self._join is not None:
            residual = self._join(rows)
            rows = self._norm(residual, self._input_norms[0])
        else:
            before = self.config.norm_before_residual
            residual = rows[:, -state.shape[1] :] if before else state
        for layer, weight in zip(self._layers[:-1], self._input_norms[1:], strict=True):
            residual = layer.run(rows, residual, rotation, attention)
            rows = self._norm(residual, weight)
        return rows, residual

    def finish(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The state that the next step recycles ``[T, H]`` and the logits ``[T, draft]``."""
        normed = kernels.rms_norm(hidden, self._final_norm, self._eps)
        return normed if self.config.norm_output else hidden, self._lm_head(normed)

    def whole(self, target_ids: Tensor) -> kernels.EagleKernel | None:
        """The drafter with its draft vocabulary as kernels; None where there are none for it."""
        config = self.config
        if self._fc is None or len(self._layers) > 1 or config.norm_before_fc:
            return None
        layer = self._layers[0].weights(self._hidden_norm)
        fuse, head = product_of(self._fc), product_of(self._lm_head)
        if layer is None or fuse is None or head is None:
            return None
        weights = kernels.EagleWeights(
            layer=layer,
            embedding=self._embedding,
            fuse_norm=self._project.norms,
            fuse=fuse,
            final_norm=self._final_norm,
            cosines=self._cos,
            sines=self._sin,
            head=head,
            target_ids=target_ids,
            window=config.sliding_window,
            recycle_normed=config.norm_output,
            residual_normed=config.norm_before_residual,
        )
        return kernels.EagleKernel(weights)


class _FusedLayer:
    """A decoder layer from its normed input on."""

    def __init__(self, layer: Any, config: DrafterConfig, number: int) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._number, self._eps, self._dim = number, config.rms_norm_eps, config.head_dim
        self._heads = config.num_attention_heads
        self._rotated = self._heads + config.num_key_value_heads
        self._qkv = _pack([attention.q_proj, attention.k_proj, attention.v_proj])
        self._qk_norm: Tensor | None = None
        if config.qk_norm:
            counts = torch.tensor([self._heads, config.num_key_value_heads])
            pair = torch.stack([attention.q_norm.weight, attention.k_norm.weight])
            self._qk_norm = pair.repeat_interleave(counts.to(pair.device), dim=0)
        self._o = _pack([attention.o_proj])
        self._post_norm = layer.post_attention_layernorm.weight
        self._gate_up = _pack([mlp.gate_proj, mlp.up_proj])
        self._down = _pack([mlp.down_proj])

    def run(
        self, rows: Tensor, residual: Tensor, rotation: _Rotation, attention: Attention
    ) -> Tensor:
        """The layer's output ``[T, H]``; ``residual`` is what its attention adds to."""
        queries = self.keep(rows, rotation, attention)
        attended = self._o(attention.attend(queries, self._number))
        hidden, normed = kernels.fused_add_rms_norm(residual, attended, self._post_norm, self._eps)
        return hidden + self._down(kernels.silu_and_mul(self._gate_up(normed)))

    def keep(self, rows: Tensor, rotation: _Rotation, attention: Attention) -> Tensor:
        """Keep keys and values; returns the queries ``[T, heads, d]``."""
        qkv = self._qkv(rows).view(len(rows), -1, self._dim)
        rotated = qkv[:, : self._rotated]
        if self._qk_norm is not None:
            normed = functional.rms_norm(rotated, rotated.shape[-1:], None, self._eps)
            rotated.copy_(normed * self._qk_norm)
        kernels.apply_rope(rotated, *rotation)
        attention.keep(qkv[:, self._heads :], self._number)
        return qkv[:, : self._heads]

    def weights(self, input_norm: Tensor) -> kernels.LayerWeights | None:
        """The layer as kernels take it whole; None where they do not."""
        products = [
            product_of(linear) for linear in (self._qkv, self._o, self._gate_up, self._down)
        ]
        qkv, out, gate_up, down = products
        if qkv is None or out is None or gate_up is None or down is None:
            return None
        if self._qk_norm is not None or self._dim % _HEAD_STEP:
            return None
        return kernels.LayerWeights(
            input_norm=input_norm,
            post_norm=self._post_norm,
            query_norm=None,
            key_norm=None,
            qkv=qkv,
            out=out,
            gate_up=gate_up,
            down=down,
            heads=self._heads,
            kv_heads=self._rotated - self._heads,
            dim=self._dim,
            eps=self._eps,
            head_eps=self._eps,
            scale=self._dim**-0.5,
        )


def _pack(layers: Sequence[nn.Linear]) -> Linear:
    """Linear layers that read the same rows, as one product."""
    biases = tuple(layer.bias for layer in layers if layer.bias is not None)
    weights: tuple[Tensor, ...] = tuple(layer.weight for layer in layers)
    weight = torch.cat(weights) if len(layers) > 1 else weights[0]
    return pack_linear(weight, torch.cat(biases) if biases else None)
