"""The drafter's forward pass as it is served: the same function as ``EagleDrafter``, fewer calls.

A chain step is short enough that each operator call counts. Projections that read the same rows
are one product, RoPE is a table, and the target's embeddings are normalized once at the start.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from drafter_svc.config import DrafterConfig
from drafter_svc.eagle import EagleDrafter
from drafter_svc.linear import Linear, pack_linear, product_of
from drafter_svc.projection import feature_norms
from drafter_svc.rope import Rope
from specwire import kernels
from specwire.kernels.projection import Projection

#: Queries ``[T, heads, d]``, the rows' own keys and values ``[T, 2 * kv_heads, d]``, keys first,
#: RoPE applied, and the layer's number give ``[T, heads * d]``.
Attend = Callable[[Tensor, Tensor, int], Tensor]

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
        self._project = Projection(feature_norms(module), self._eps, self._fc)
        embedding = embedding.to(self.device, self.dtype)
        self._embedding = self._norm(embedding, first.input_layernorm.weight)
        self._hidden_norm = first.hidden_norm.weight
        plain: list[Any] = list(module.layers.values())
        self._first: _FusedLayer | None = None
        if config.mtp_head:
            plain.insert(0, first.layer)
            self._join = pack_linear(first.eh_proj.weight)
        else:
            self._first = _FusedLayer(first, config, 0)
        self._plain = [
            (layer.input_layernorm.weight, _FusedLayer(layer, config, number))
            for number, layer in enumerate(plain, start=config.num_hidden_layers - len(plain))
        ]
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

    def layer(self, tokens: Tensor, state: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """The output ``[T, H]`` of the last decoder layer, before the final norm.

        ``tokens`` are target ids and ``positions`` the entries' own, both int64 ``[T]``.
        """
        pair = kernels.join(self._embedding, tokens, state, self._hidden_norm, self._eps)
        rotation = self._cos, self._sin, positions
        if self._first is None:
            hidden = self._join(pair)
        else:
            before = self.config.norm_before_residual
            residual = pair[:, -state.shape[1] :] if before else state
            hidden = self._first.run(pair, residual, rotation, attend)
        for weight, layer in self._plain:
            hidden = layer.run(self._norm(hidden, weight), hidden, rotation, attend)
        return hidden

    def finish(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The state that the next step recycles ``[T, H]`` and the logits ``[T, draft]``."""
        normed = kernels.norm(hidden, self._final_norm, self._eps)
        return normed if self.config.norm_output else hidden, self._lm_head(normed)

    def whole(self, target_ids: Tensor) -> kernels.Drafter | None:
        """The drafter with its draft vocabulary as kernels; None where there are none for it."""
        config = self.config
        if self._first is None or self._fc is None or self._plain or config.norm_before_fc:
            return None
        layer = self._first.weights(self._hidden_norm)
        fuse, head = product_of(self._fc), product_of(self._lm_head)
        if layer is None or fuse is None or head is None:
            return None
        weights = kernels.DrafterWeights(
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
        return kernels.Drafter(weights)


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
        self,
        rows: Tensor,
        residual: Tensor,
        rotation: tuple[Tensor, Tensor, Tensor],
        attend: Attend,
    ) -> Tensor:
        """The layer's output ``[T, H]``; ``residual`` is what its attention adds to."""
        qkv = self._qkv(rows).view(len(rows), -1, self._dim)
        rotated = qkv[:, : self._rotated]
        if self._qk_norm is not None:
            normed = functional.rms_norm(rotated, rotated.shape[-1:], None, self._eps)
            rotated.copy_(normed * self._qk_norm)
        kernels.rotate(rotated, *rotation)
        attended = self._o(attend(qkv[:, : self._heads], qkv[:, self._heads :], self._number))
        hidden, normed = kernels.add_norm(residual, attended, self._post_norm, self._eps)
        return hidden + self._down(kernels.gate(self._gate_up(normed)))

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
