"""The drafter's forward pass as it is served: the same function as ``EagleDrafter``, fewer calls.

A chain step is short enough that each operator call counts. Projections that read the same rows
are one product, RoPE is a table, and the target's embeddings are normalized once at the start.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from drafter_svc.eagle import EagleDrafter, rope
from drafter_svc.linear import pack_linear

#: Queries ``[T, heads, d]`` and the rows' own keys and values ``[T, 2 * kv_heads, d]``, keys
#: first, RoPE applied, give ``[T, heads * d]``.
Attend = Callable[[Tensor, Tensor], Tensor]


class FusedDrafter:
    """An ``EagleDrafter`` with its target's embeddings, over packed rows ``[T, ...]``."""

    def __init__(self, module: EagleDrafter, embedding: Tensor, positions: int) -> None:
        """Take the target's embedding ``[vocab, H]`` and how many positions can occur."""
        config, layer = module.config, module.midlayer
        attention, mlp = layer.self_attn, layer.mlp
        self.config = config
        self.dtype, self.device = module.fc.weight.dtype, module.fc.weight.device
        self._eps = config.rms_norm_eps
        self._fc = pack_linear(module.fc.weight)
        norms = list(module.fc_norm.parameters())
        self._fc_norm = torch.stack(tuple(norms)) if norms else None
        embedding = embedding.to(self.device, self.dtype)
        self._embedding = self._norm(embedding, layer.input_layernorm.weight)
        self._hidden_norm = layer.hidden_norm.weight
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self._qkv = pack_linear(torch.cat([p.weight for p in projections]))
        self._o = pack_linear(attention.o_proj.weight)
        self._post_norm = layer.post_attention_layernorm.weight
        self._gate_up = pack_linear(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
        self._down = pack_linear(mlp.down_proj.weight)
        self._final_norm = module.norm.weight
        self._lm_head = pack_linear(module.lm_head.weight)
        cosines, sines = rope(
            torch.arange(positions, device=self.device), config.head_dim, config.rope_theta
        )
        half = config.head_dim // 2
        self._cos = cosines.to(self.dtype)
        self._sin = torch.cat([-sines[..., :half], sines[..., half:]], dim=-1).to(self.dtype)

    def _norm(self, rows: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(rows, rows.shape[-1:], weight, self._eps)

    def fuse(self, features: Tensor) -> Tensor:
        """Target features ``[T, captured * H]`` of the weights' dtype to states ``[T, H]``."""
        if self._fc_norm is not None:
            chunks = features.view(-1, *self._fc_norm.shape)
            normed = functional.rms_norm(chunks, chunks.shape[-1:], None, self._eps)
            features = (normed * self._fc_norm).flatten(-2)
        return self._fc(features)

    def layer(self, tokens: Tensor, state: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """The decoder layer's output ``[T, H]``, before the final norm.

        ``tokens`` are target ids and ``positions`` the entries' own, both int64 ``[T]``.
        """
        config = self.config
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        normed = self._norm(state, self._hidden_norm)
        embeds = functional.embedding(tokens, self._embedding)
        qkv = self._qkv(torch.cat([embeds, normed], dim=-1))
        qkv = qkv.view(len(tokens), -1, config.head_dim)
        rotated = qkv[:, : heads + kv_heads]
        first, second = rotated.chunk(2, dim=-1)
        swapped = torch.cat([second, first], dim=-1)
        cosines, sines = self._cos[positions], self._sin[positions]
        torch.addcmul(rotated * cosines, swapped, sines, out=rotated)
        attended = self._o(attend(qkv[:, :heads], qkv[:, heads:]))
        hidden = (normed if config.norm_before_residual else state) + attended
        gate, up = self._gate_up(self._norm(hidden, self._post_norm)).chunk(2, dim=-1)
        return hidden + self._down(functional.silu(gate) * up)

    def finish(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The state that the next step recycles ``[T, H]`` and the fp32 logits ``[T, draft]``."""
        normed = self._norm(hidden, self._final_norm)
        return normed if self.config.norm_output else hidden, self._lm_head(normed).float()
