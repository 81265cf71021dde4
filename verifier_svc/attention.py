"""The one seam between transformers and our KV cache: packed attention over slots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface

NAME = "holdcourse"

# Arguments of transformers' attention functions that change what is attended to.
_NOT_SERVED = ("softcap", "sliding_window", "s_aux", "position_bias")


@dataclass(frozen=True, slots=True)
class Segment:
    """The rows of one sequence in a packed batch.

    Rows [start, start + count) of the batch are positions [position, position + count) of a
    sequence whose position p lives in slot `base + p`.
    """

    start: int
    count: int
    position: int
    base: int


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """What a packed batch writes to and reads from the cache.

    `slots` is int64 [rows]; `keys` and `values` hold per layer [slots, kv_heads, head_dim].
    """

    segments: tuple[Segment, ...]
    slots: torch.Tensor
    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    plan: AttentionPlan,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Write the batch's keys and values, then attend sequence by sequence.

    Follows transformers' attention interface: query [1, heads, rows, d], key and value
    [1, kv_heads, rows, d], returns [1, rows, heads, d]. The mask is never built: causality
    follows from the plan.

    Raises:
        NotImplementedError: the layer asks for more than standard attention.
    """
    for extra in _NOT_SERVED:
        if kwargs.get(extra) is not None:
            raise NotImplementedError(f"{type(module).__name__} asks for {extra}.")
    layer: int = module.layer_idx  # type: ignore[assignment]
    keys, values = plan.keys[layer], plan.values[layer]
    keys.index_copy_(0, plan.slots, key[0].transpose(0, 1))
    values.index_copy_(0, plan.slots, value[0].transpose(0, 1))
    pieces = []
    for segment in plan.segments:
        stop = segment.base + segment.position + segment.count
        pieces.append(
            _attend(
                query[:, :, segment.start : segment.start + segment.count],
                keys[segment.base : stop].transpose(0, 1)[None],
                values[segment.base : stop].transpose(0, 1)[None],
                scaling,
            )
        )
    return (pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)), None


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Attend the last rows of a sequence to all of it: [1, heads, n, d] -> [1, n, heads, d]."""
    _, heads, count, width = query.shape
    kv_heads, length = key.shape[1], key.shape[2]
    group = heads // kv_heads
    if count == 1:
        # The heads of a group read the same keys: fold them into query rows.
        folded = query.view(1, kv_heads, group, width)
        out = F.scaled_dot_product_attention(folded, key, value, scale=scaling)
        return out.reshape(1, 1, heads, width)
    if count == length:
        out = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=group > 1
        )
        return out.transpose(1, 2)
    mask = torch.ones(count, length, dtype=torch.bool, device=query.device).tril(length - count)
    folded = query.reshape(1, kv_heads, group * count, width)
    out = F.scaled_dot_product_attention(
        folded, key, value, attn_mask=mask.repeat(group, 1), scale=scaling
    )
    return out.view(1, heads, count, width).transpose(1, 2)


AttentionInterface.register(NAME, packed_attention)
