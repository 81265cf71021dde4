"""Attention of training-time test: every column of a sequence starts its own chain."""

import torch
from torch import Tensor


class ChainAttention:
    """An ``Attend`` whose first call is step 0 and whose later calls are one chain step each.

    Step 0 is causal attention over all columns. At step k, column i sees the step-0 keys of
    columns 0..i and its own keys of steps 1..k, never another chain's. Only ``columns`` (int64
    ``[S]``) go on after step 0; later calls get and return ``[B, S, ...]`` tensors.
    """

    def __init__(self, columns: Tensor) -> None:
        self._columns = columns
        self._first: tuple[Tensor, Tensor] | None = None
        self._own: list[tuple[Tensor, Tensor]] = []

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        heads = queries.shape[2]
        pair = _per_head(keys, heads), _per_head(values, heads)
        if self._first is None:
            self._first, columns = pair, torch.arange(queries.shape[1])
        else:
            self._own.append(pair)
            columns = self._columns
        first_keys, first_values = self._first
        length = first_keys.shape[2]

        rows = queries.transpose(1, 2) * queries.shape[-1] ** -0.5
        scores = rows @ first_keys.transpose(-1, -2)
        scores = scores.masked_fill(torch.arange(length) > columns[:, None], -torch.inf)
        own = [(rows * key).sum(-1, keepdim=True) for key, _ in self._own]
        weights = torch.cat([scores, *own], dim=-1).softmax(-1)

        out = weights[..., :length] @ first_values
        for slot, (_, value) in enumerate(self._own, start=length):
            out = out + weights[..., slot, None] * value
        return out.transpose(1, 2).flatten(2)


def _per_head(shared: Tensor, heads: int) -> Tensor:
    """``[B, T, kv_heads, d]`` to ``[B, heads, T, d]``."""
    return shared.repeat_interleave(heads // shared.shape[2], dim=2).transpose(1, 2)
