"""Training-time test: unroll the chain that serving runs, teacher-forced, from every column.

Column i at chain step k reads token x_{i+1+k} at RoPE position i + k, with the fused feature of
position i at step 0 and the recycled state of its own step k - 1 after that. It is taught the
target's distribution at position i + 1 + k, so its label is x_{i+2+k}.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from drafter_svc.eagle import EagleDrafter
from drafter_svc.train.attention import ChainAttention
from drafter_svc.train.data import Batch


@dataclass(frozen=True, slots=True)
class ChainStep:
    """One chain step over ``S`` columns: all tensors ``[B, S]`` but ``hidden`` ``[B, S, H]``.

    ``live`` marks columns that start where serving starts chains (at or after the last prompt
    token) and whose inputs and label lie in one answer; ``teacher`` is the position of the
    target's distribution (only meaningful where live). ``columns`` is int64 ``[S]``.
    """

    hidden: Tensor
    columns: Tensor
    teacher: Tensor
    live: Tensor


def chain_columns(batch: Batch, stride: int, phase: int) -> Tensor:
    """Every ``stride``-th column from the first that has an answer token to read, int64 ``[S]``."""
    readable = batch.answer[:, 1:].any(dim=0).nonzero()
    first = int(readable[0]) if len(readable) else 0
    return torch.arange(first + phase % stride, batch.ids.shape[1] - 1, stride)


def unroll(
    drafter: EagleDrafter,
    embedding: nn.Embedding,
    batch: Batch,
    features: Tensor,
    *,
    steps: int,
    columns: Tensor,
) -> Iterator[ChainStep]:
    """Run ``steps`` chain steps. Step 0 covers all ``T - 1`` columns, later ones ``columns``.

    ``features`` is ``[B, T, captured * H]`` of ``batch.ids``. Gradients reach every step through
    the recycled state.
    """
    length = batch.ids.shape[1]
    current = torch.arange(length - 1)
    attend = ChainAttention(columns)
    state = drafter.fuse(features[:, :-1])
    live = batch.answer[:, 1:]
    for step in range(steps):
        if step == 1:
            current, state, live = columns, state[:, columns], live[:, columns]
        tokens = batch.ids[:, (current + 1 + step).clamp(max=length - 1)]
        hidden = drafter.layer(embedding(tokens), state, current + step, attend)
        label = (current + 2 + step).clamp(max=length - 1)
        live = live & batch.answer[:, label] & (current + 2 + step < length)
        yield ChainStep(hidden, current, (label - 1).expand_as(live), live)
        state = drafter.recycle(hidden)
