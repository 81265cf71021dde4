"""Attention of a batch's rows over the drafter's KV."""

from dataclasses import dataclass

from torch import Tensor

import speckernels as kernels
from drafter_svc.inference.kv_cache import KVCache


@dataclass(frozen=True, slots=True)
class Attention:
    """Rows whose keys and values belong at ``slots``, int64 ``[T]``, and that see ``reach``."""

    cache: KVCache
    slots: Tensor
    reach: kernels.AttentionMetadata
    scale: float

    def keep(self, kv: Tensor, layer: int) -> None:
        """Keep the rows' own ``[T, 2 * kv_heads, d]``, keys first, RoPE applied."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        heads = keys.shape[1]
        keys.index_copy_(0, self.slots, kv[:, :heads])
        values.index_copy_(0, self.slots, kv[:, heads:])

    def attend(self, queries: Tensor, layer: int) -> Tensor:
        """What queries ``[T, heads, d]`` make of what is kept by then: ``[T, heads * d]``."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        return kernels.paged_attention(queries, keys, values, self.reach, self.scale).flatten(1)
