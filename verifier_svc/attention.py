"""The one seam between transformers and our KV cache: packed attention over slots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface

from specwire import kernels
from specwire.kernels import Reach

NAME = "holdcourse"

# Arguments of transformers' attention functions that change what is attended to.
_NOT_SERVED = ("softcap", "sliding_window", "s_aux", "position_bias")


class Unsupported(Exception):
    """A layer asks for more, or has another shape, than what runs it can serve."""


@dataclass(slots=True)
class AttentionPlan:
    """What a packed batch writes to and reads from the cache.

    `slots` is int64 [rows]; `keys` and `values` hold per layer [slots, kv_heads, head_dim].
    `rotation` is made by the first layer that needs it, for all of them.
    """

    reach: Reach
    slots: torch.Tensor
    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    rotation: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def turned(
        self, cosines: torch.Tensor, sines: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What `kernels.rotate` takes, from transformers' tables [1, rows, head_dim]."""
        if self.rotation is None:
            half = cosines.shape[-1] // 2
            signed = torch.cat([-sines[0, :, None, :half], sines[0, :, None, half:]], -1)
            positions = torch.arange(cosines.shape[1], device=cosines.device)
            self.rotation = cosines[0, :, None].contiguous(), signed, positions
        return self.rotation

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """Keep a layer's keys and values [rows, kv_heads, d], then attend as the plan says.

        `query` is [rows, heads, d]; the result too, contiguous.
        """
        keys, values = self.keys[layer], self.values[layer]
        keys.index_copy_(0, self.slots, key)
        values.index_copy_(0, self.slots, value)
        return kernels.attend(query, keys, values, self.reach, scale)


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
        Unsupported: the layer asks for more than standard attention.
    """
    for extra in _NOT_SERVED:
        if kwargs.get(extra) is not None:
            raise Unsupported(f"{type(module).__name__} asks for {extra}.")
    layer: int = module.layer_idx  # type: ignore[assignment]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key, value = (state[0].transpose(0, 1) for state in (query, key, value))
    return plan.attend(layer, query, key, value, scale)[None], None


AttentionInterface.register(NAME, packed_attention)
