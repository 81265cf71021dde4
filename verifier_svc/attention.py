"""The one seam between transformers and our KV cache: packed attention over slots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface

from verifier_svc.blocks import BLOCK_SIZE, blocks_for

NAME = "holdcourse"

# Arguments of transformers' attention functions that change what is attended to.
_NOT_SERVED = ("softcap", "sliding_window", "s_aux", "position_bias")


@dataclass(frozen=True, slots=True)
class Segment:
    """The rows of one sequence in a packed batch.

    Rows [start, start + count) of the batch attend to slots [base, base + length) as `mask`
    [query heads per key head * count, length] allows, which is added to the scores; None stands
    for a whole prompt, causal by itself.
    """

    start: int
    count: int
    base: int
    length: int
    mask: torch.Tensor | None


def segment(
    start: int, count: int, position: int, base: int, group: int, like: torch.Tensor
) -> Segment:
    """The segment of `count` rows at `position` of a sequence whose position 0 is at slot `base`.

    Keys are read in whole blocks, with those beyond the sequence masked. The kernels' sums then
    take the same steps whether a row runs alone or with others behind it, and a row's result
    does not depend on the draft that follows it. (Masked slots must hold finite numbers.)

    Args:
        start: first row in the batch.
        count: rows.
        position: of the first row in its sequence.
        base: slot of position 0.
        group: query heads that share a key head.
        like: a tensor of the dtype and device that the mask gets.
    """
    if position == 0 and count > 1:
        return Segment(start, count, base, count, None)
    length = blocks_for(position + count) * BLOCK_SIZE
    rows = torch.arange(position, position + count, device=like.device)
    hidden = torch.arange(length, device=like.device) > rows[:, None]
    mask = like.new_zeros(count, length).masked_fill_(hidden, -torch.inf)
    return Segment(start, count, base, length, mask.repeat(group, 1))


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
    for part in plan.segments:
        reach = slice(part.base, part.base + part.length)
        rows = query[:, :, part.start : part.start + part.count]
        read = keys[reach].transpose(0, 1)[None], values[reach].transpose(0, 1)[None]
        pieces.append(_attend(rows, *read, part.mask, scaling))
    return (pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)), None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """Attend rows [1, heads, n, d] to keys [1, kv_heads, m, d]; returns [1, n, heads, d]."""
    _, heads, count, width = query.shape
    kv_heads = key.shape[1]
    if mask is None:
        out = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=heads > kv_heads
        )
    else:
        # The heads of a group read the same keys: fold them into query rows.
        folded = query.reshape(1, kv_heads, -1, width)
        out = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
        out = out.view(1, heads, count, width)
    return out.transpose(1, 2)


AttentionInterface.register(NAME, packed_attention)
