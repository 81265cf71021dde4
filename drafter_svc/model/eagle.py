"""The EAGLE-3.1 drafter: fused target features, decoder layers, a recycled state, a small head.

Submodule names give the tensor names of the SpecForge checkpoint layout. The two normalizations
of "Attention Drift" (arXiv 2605.09992) are switches of the config: ``fc_norm`` is one RMSNorm per
captured hidden state, ``norm_output`` recycles the state after the final norm instead of before.
With ``mtp_head`` the first layer is that of a multi-token-prediction head instead of EAGLE-3's.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from drafter_svc.model.config import DrafterConfig
from drafter_svc.model.rope import Rope, rotate

#: Attention over whatever keys the caller keeps: queries ``[..., T, heads, d]`` and this call's
#: keys and values ``[..., T, kv_heads, d]``, RoPE applied, give ``[..., T, heads * d]``. It is
#: called once per layer, first layer first, and honours the config's ``sliding_window``.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class EagleDrafter(nn.Module):
    """One chain step is ``layer`` on (embedding, state), then ``logits`` and ``recycle`` of it.

    The state is ``fuse(features)`` where the target's features are known and the recycled state
    of the step before elsewhere. The module keeps no KV: training (chain mask) and serving
    (per-sequence slabs) each pass their own ``attend``. ``embed_tokens`` is there only where the
    drafter has ``own_embeddings``. All tensors have the weights' dtype unless said otherwise;
    ``...`` are optional batch dimensions.
    """

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.config = config
        width, captured = config.hidden_size, len(config.aux_layers)
        eps = config.rms_norm_eps
        if config.own_embeddings:
            self.embed_tokens = nn.Embedding(config.vocab_size, width)
        if not config.mtp_head:
            self.fc = nn.Linear(captured * config.target_hidden_size, width, bias=False)
        self.fc_norm = nn.ModuleList(
            nn.RMSNorm(config.target_hidden_size, eps=eps)
            for _ in range(captured if config.fc_norm else 0)
        )
        if config.norm_before_fc:
            self.input_norm = nn.RMSNorm(captured * config.target_hidden_size, eps=eps)
        self.midlayer: Any = _MtpLayer(config) if config.mtp_head else _FirstLayer(config)
        #: Layers behind the first, by the number that checkpoints give them.
        self.layers = nn.ModuleDict(
            {str(index): _FurtherLayer(config) for index in range(1, config.num_hidden_layers)}
        )
        self.norm = nn.RMSNorm(width, eps=eps)
        self.lm_head: Any = None
        if config.own_head:
            self.lm_head = nn.Linear(width, config.draft_vocab_size, bias=False)
        self._rope = Rope(
            config.head_dim, config.rope_theta, config.rope_scaling, config.max_position_embeddings
        )

    def embeddings(self, target: nn.Embedding) -> nn.Embedding:
        """The embeddings that the drafter reads: its own, or those of its ``target``."""
        return self.embed_tokens if self.config.own_embeddings else target

    def borrow_head(self, rows: Tensor) -> None:
        """Take the target's output layer, ``[vocab, H]``, in the weights' dtype and place.

        It is no weight of the drafter: nothing trains or saves it.
        """
        norm = self.norm.weight
        with torch.device("meta"):
            head = nn.Linear(rows.shape[1], rows.shape[0], bias=False)
        head.weight = nn.Parameter(rows.detach().to(norm.device, norm.dtype), requires_grad=False)
        self.lm_head = head

    def fuse(self, features: Tensor) -> Tensor:
        """Target features ``[..., T, captured * H]`` in aux layer order to ``[..., T, H]``."""
        features = features.to(self.norm.weight.dtype)
        if self.config.fc_norm:
            chunks = features.chunk(len(self.fc_norm), dim=-1)
            normed = [norm(chunk) for norm, chunk in zip(self.fc_norm, chunks, strict=True)]
            features = torch.cat(normed, dim=-1)
        if self.config.norm_before_fc:
            features = self.input_norm(features)
        return features if self.config.mtp_head else self.fc(features)

    def layer(self, embeds: Tensor, state: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """The output of the last decoder layer, before the final norm.

        ``embeds`` and ``state`` are ``[..., T, H]``, ``positions`` int64 ``[..., T]``: position i
        pairs the embedding of token i + 1 with the state of position i. Returns ``[..., T, H]``.
        """
        rotation = self._rope(positions)
        hidden: Tensor = self.midlayer(embeds, state, rotation, attend)
        for further in self.layers.values():
            hidden = further(hidden, rotation, attend)
        return hidden

    def recycle(self, hidden: Tensor) -> Tensor:
        """The state for the next chain step from ``layer``'s output, ``[..., T, H]``."""
        return self.norm(hidden) if self.config.norm_output else hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits ``[..., T, draft_vocab]`` from ``layer``'s output (not from ``recycle``)."""
        return self.lm_head(self.norm(hidden)).float()  # type: ignore[no-any-return]


_Rotation = tuple[Tensor, Tensor]


class _FirstLayer(nn.Module):
    """A Llama layer whose attention reads embedding and state side by side, embedding first."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.norm_before_residual = config.norm_before_residual
        self.input_layernorm = nn.RMSNorm(width, eps=eps)
        self.hidden_norm = nn.RMSNorm(width, eps=eps)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=eps)
        self.self_attn = _Attention(config, 2 * width)
        self.mlp = _Mlp(width, config.intermediate_size)

    def forward(self, embeds: Tensor, state: Tensor, rotation: _Rotation, attend: Attend) -> Tensor:
        normed = self.hidden_norm(state)
        residual = normed if self.norm_before_residual else state
        pair = torch.cat([self.input_layernorm(embeds), normed], dim=-1)
        hidden = residual + self.self_attn(pair, rotation, attend)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))  # type: ignore[no-any-return]


class _MtpLayer(nn.Module):
    """A plain Llama layer over a projection of embedding and state, embedding first.

    That of DeepSeek-V3, where the norms are ``enorm`` and ``hnorm``: unlike in EAGLE-3 the
    embedding is part of the residual stream.
    """

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = nn.RMSNorm(width, eps=eps)
        self.hidden_norm = nn.RMSNorm(width, eps=eps)
        self.eh_proj = nn.Linear(2 * width, width, bias=False)
        self.layer = _FurtherLayer(config)

    def forward(self, embeds: Tensor, state: Tensor, rotation: _Rotation, attend: Attend) -> Tensor:
        pair = torch.cat([self.input_layernorm(embeds), self.hidden_norm(state)], dim=-1)
        return self.layer(self.eh_proj(pair), rotation, attend)  # type: ignore[no-any-return]


class _FurtherLayer(nn.Module):
    """A plain Llama layer."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = nn.RMSNorm(width, eps=eps)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=eps)
        self.self_attn = _Attention(config, width)
        self.mlp = _Mlp(width, config.intermediate_size)

    def forward(self, hidden: Tensor, rotation: _Rotation, attend: Attend) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), rotation, attend)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))  # type: ignore[no-any-return]


class _Attention(nn.Module):
    def __init__(self, config: DrafterConfig, width: int) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        dim, bias = config.head_dim, config.attention_bias
        self.q_proj = nn.Linear(width, self.heads * dim, bias=bias)
        self.k_proj = nn.Linear(width, self.kv_heads * dim, bias=bias)
        self.v_proj = nn.Linear(width, self.kv_heads * dim, bias=bias)
        self.o_proj = nn.Linear(self.heads * dim, config.hidden_size, bias=bias)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(dim, eps=config.rms_norm_eps)
            self.k_norm = nn.RMSNorm(dim, eps=config.rms_norm_eps)

    def forward(self, rows: Tensor, rotation: _Rotation, attend: Attend) -> Tensor:
        queries = self.q_proj(rows).unflatten(-1, (self.heads, -1))
        keys = self.k_proj(rows).unflatten(-1, (self.kv_heads, -1))
        values = self.v_proj(rows).unflatten(-1, (self.kv_heads, -1))
        if self.qk_norm:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        attended = attend(rotate(queries, rotation), rotate(keys, rotation), values)
        return self.o_proj(attended)  # type: ignore[no-any-return]


class _Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        gated = functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden)
        return self.down_proj(gated)  # type: ignore[no-any-return]
