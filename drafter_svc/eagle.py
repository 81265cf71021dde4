"""The EAGLE-3.1 drafter: fused target features, one decoder layer, a recycled state, a small head.

Submodule names give the tensor names of the SpecForge checkpoint layout. The two normalizations
of "Attention Drift" (arXiv 2605.09992) are switches of the config: ``fc_norm`` is one RMSNorm per
captured hidden state, ``norm_output`` recycles the state after the final norm instead of before.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from drafter_svc.config import DrafterConfig

#: Attention over whatever keys the caller keeps: queries ``[..., T, heads, d]`` and this call's
#: keys and values ``[..., T, kv_heads, d]``, RoPE applied, give ``[..., T, heads * d]``.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class EagleDrafter(nn.Module):
    """One chain step is ``layer`` on (embedding, state), then ``logits`` and ``recycle`` of it.

    The state is ``fuse(features)`` where the target's features are known and the recycled state
    of the step before elsewhere. The module keeps no KV: training (chain mask) and serving
    (per-sequence slabs) each pass their own ``attend``. All tensors have the weights' dtype unless
    said otherwise; ``...`` are optional batch dimensions.
    """

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.config = config
        width, captured = config.hidden_size, len(config.aux_layers)
        self.fc = nn.Linear(captured * config.target_hidden_size, width, bias=False)
        self.fc_norm = nn.ModuleList(
            nn.RMSNorm(config.target_hidden_size, eps=config.rms_norm_eps)
            for _ in range(captured if config.fc_norm else 0)
        )
        self.midlayer = _DecoderLayer(config)
        self.norm = nn.RMSNorm(width, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(width, config.draft_vocab_size, bias=False)

    def fuse(self, features: Tensor) -> Tensor:
        """Target features ``[..., T, captured * H]`` in aux layer order to ``[..., T, H]``."""
        features = features.to(self.fc.weight.dtype)
        if self.config.fc_norm:
            chunks = features.chunk(len(self.fc_norm), dim=-1)
            normed = [norm(chunk) for norm, chunk in zip(self.fc_norm, chunks, strict=True)]
            features = torch.cat(normed, dim=-1)
        return self.fc(features)  # type: ignore[no-any-return]

    def layer(self, embeds: Tensor, state: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """The decoder layer's output, before the final norm.

        ``embeds`` and ``state`` are ``[..., T, H]``, ``positions`` int64 ``[..., T]``: position i
        pairs the embedding of token i + 1 with the state of position i. Returns ``[..., T, H]``.
        """
        return self.midlayer(embeds, state, positions, attend)  # type: ignore[no-any-return]

    def recycle(self, hidden: Tensor) -> Tensor:
        """The state for the next chain step from ``layer``'s output, ``[..., T, H]``."""
        return self.norm(hidden) if self.config.norm_output else hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits ``[..., T, draft_vocab]`` from ``layer``'s output (not from ``recycle``)."""
        return self.lm_head(self.norm(hidden)).float()  # type: ignore[no-any-return]


class _DecoderLayer(nn.Module):
    """A Llama layer whose attention reads embedding and state side by side, embedding first."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.norm_before_residual = config.norm_before_residual
        self.input_layernorm = nn.RMSNorm(width, eps=eps)
        self.hidden_norm = nn.RMSNorm(width, eps=eps)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=eps)
        self.self_attn = _Attention(config)
        self.mlp = _Mlp(width, config.intermediate_size)

    def forward(self, embeds: Tensor, state: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        normed = self.hidden_norm(state)
        residual = normed if self.norm_before_residual else state
        pair = torch.cat([self.input_layernorm(embeds), normed], dim=-1)
        hidden = residual + self.self_attn(pair, positions, attend)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))  # type: ignore[no-any-return]


class _Attention(nn.Module):
    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        pair_width, query_width = 2 * config.hidden_size, self.heads * self.head_dim
        self.q_proj = nn.Linear(pair_width, query_width, bias=False)
        self.k_proj = nn.Linear(pair_width, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(pair_width, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(query_width, config.hidden_size, bias=False)
        self.rope_theta = config.rope_theta

    def forward(self, pair: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        rotation = rope(positions, self.head_dim, self.rope_theta)
        queries = rotate(self.q_proj(pair).unflatten(-1, (self.heads, -1)), rotation)
        keys = rotate(self.k_proj(pair).unflatten(-1, (self.kv_heads, -1)), rotation)
        values = self.v_proj(pair).unflatten(-1, (self.kv_heads, -1))
        return self.o_proj(attend(queries, keys, values))  # type: ignore[no-any-return]


class _Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        gated = functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden)
        return self.down_proj(gated)  # type: ignore[no-any-return]


def rope(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines, fp32 ``[..., T, 1, head_dim]``, of int64 ``positions`` ``[..., T]``."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device) / head_dim
    angles = positions[..., None] * theta**-exponents
    angles = torch.cat([angles, angles], dim=-1).unsqueeze(-2)
    return angles.cos(), angles.sin()


def rotate(heads: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Apply RoPE (half-split pairs, as Llama in transformers) to ``[..., T, heads, d]``."""
    cosines, sines = (table.to(heads.dtype) for table in rotation)
    first, second = heads.chunk(2, dim=-1)
    return heads * cosines + torch.cat([-second, first], dim=-1) * sines
