"""Attention of training-time test over packed documents: every column starts its own chain."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from drafter_svc.train.objective.sdpa_with_lse import attend, attend_backward

# Query rows that share one call of the kernel. A mask is this many rows high, never T x T.
_BLOCK = 256


@dataclass(frozen=True, slots=True)
class _Block:
    """Queries ``[start, stop)`` attend to first-step keys ``[first, last)`` as ``mask`` adds."""

    start: int
    stop: int
    first: int
    last: int
    mask: Tensor


@dataclass(slots=True)
class _Keys:
    """Keys and values of one layer: those of step 0, and those of each chain step after it."""

    first: tuple[Tensor, Tensor] | None = None
    own: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class ChainAttention:
    """An ``Attend`` whose first call in each layer is step 0 and each later one a chain step.

    Rows are packed: documents of ``lengths`` tokens, one behind the other. Step 0 is causal
    attention of all columns within their document. At step k, column i sees the step-0 keys of
    its document up to i and its own keys of steps 1..k, never another chain's. Only ``columns``
    (int64 ``[S]``, ascending) go on after step 0; later calls get and return ``[S, ...]`` tensors.
    With ``window``, a query at position p sees the keys at positions above ``p - window``. A step
    is one call for each of ``layers``, in their order.

    Memory grows with the number of rows: nothing of size T x T is ever built.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        columns: Tensor,
        window: int | None = None,
        layers: int = 1,
    ) -> None:
        self._lengths, self._columns, self._window = lengths, columns, window
        self._turns = cycle([_Keys() for _ in range(layers)])
        self._planned: tuple[int, tuple[_Block, ...]] = -1, ()

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        layer = next(self._turns)
        if layer.first is None:
            layer.first = keys, values
            columns = torch.arange(len(queries), device=queries.device)
            own: tuple[Tensor | None, Tensor | None] = None, None
        else:
            layer.own.append((keys, values))
            if self._window is not None and len(layer.own) >= self._window:
                raise ValueError(f"a window of {self._window} hides the text from chain steps")
            columns = self._columns
            own = torch.stack([k for k, _ in layer.own]), torch.stack([v for _, v in layer.own])
        step, group = len(layer.own), queries.shape[1] // keys.shape[1]
        # All layers of a step share its masks.
        if self._planned[0] != step:
            self._planned = step, tuple(self._blocks(columns, step, queries, group))
        out: Tensor = _ChainSoftmax.apply(queries, *layer.first, *own, self._planned[1])  # type: ignore[no-untyped-call]
        return out.flatten(1)

    def _blocks(self, columns: Tensor, step: int, like: Tensor, group: int) -> Iterator[_Block]:
        edges = [0]
        for length in self._lengths:
            edges.append(edges[-1] + length)
        cuts = torch.searchsorted(columns, torch.tensor(edges, device=columns.device)).tolist()
        for begin, low, high in zip(edges, cuts, cuts[1:], strict=False):
            for start in range(low, high, _BLOCK):
                stop = min(high, start + _BLOCK)
                rows = columns[start:stop]
                first, last = begin, int(rows[-1]) + 1
                if self._window is not None:
                    first = max(begin, int(rows[0]) + step - self._window + 1)
                keys = torch.arange(first, last, device=columns.device)
                hidden = keys > rows[:, None]
                if self._window is not None:
                    hidden |= keys <= rows[:, None] + step - self._window
                mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
                mask.masked_fill_(hidden, -torch.inf)
                yield _Block(start, stop, first, last, mask.repeat(group, 1))


class _ChainSoftmax(torch.autograd.Function):
    """One softmax over the first step's keys (a fused kernel) and the own keys (elementwise).

    The two parts are merged by their log-sum-exps. Backward hands the kernel the merged output
    and log-sum-exp, from which it recomputes the weights that its keys have in the whole softmax.

    Queries ``[S, heads, d]``; keys and values ``[N, kv_heads, d]``; own keys and values
    ``[steps, S, kv_heads, d]`` or None. A group's query heads are folded into rows
    ``[kv_heads, group * rows, d]``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        own_keys: Tensor | None,
        own_values: Tensor | None,
        blocks: tuple[_Block, ...],
    ) -> Tensor:
        out = torch.empty_like(queries)
        grouped = _grouped(queries, keys.shape[1])
        sums = grouped.new_empty(grouped.shape[:-1], dtype=torch.float32)
        for block in blocks:
            rows, reach = slice(block.start, block.stop), slice(block.first, block.last)
            part, lse = attend(_fold(grouped[rows]), *_pair(keys, values, reach), block.mask)
            _grouped(out, keys.shape[1])[rows] = _unfold(part, block)
            sums[rows] = _unfold(lse[..., None], block)[..., 0]
        if own_keys is not None and own_values is not None:
            scores = _own_scores(grouped, own_keys)
            merged = torch.logaddexp(sums, scores.logsumexp(0))
            view = _grouped(out, keys.shape[1])
            weights = (scores - merged).exp().to(out.dtype)
            view.mul_((sums - merged).exp().to(out.dtype)[..., None])
            for weight, value in zip(weights, own_values, strict=True):
                view.addcmul_(weight[..., None], value[:, :, None])
            sums = merged
        ctx.save_for_backward(queries, keys, values, own_keys, own_values, out, sums)
        ctx.blocks = blocks
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, own_keys, own_values, out, sums = ctx.saved_tensors
        kv_heads = keys.shape[1]
        grouped, grads, outs = (_grouped(t, kv_heads) for t in (queries, grad, out))
        d_queries = torch.zeros_like(queries)
        d_grouped = _grouped(d_queries, kv_heads)
        d_keys, d_values = torch.zeros_like(keys), torch.zeros_like(values)
        for block in ctx.blocks:
            rows, reach = slice(block.start, block.stop), slice(block.first, block.last)
            d_q, d_k, d_v = attend_backward(
                _fold(grads[rows]),
                _fold(grouped[rows]),
                *_pair(keys, values, reach),
                block.mask,
                _fold(outs[rows]),
                _fold(sums[rows][..., None])[..., 0],
            )
            d_grouped[rows] = _unfold(d_q, block)
            d_keys[reach] += d_k.transpose(0, 1)
            d_values[reach] += d_v.transpose(0, 1)
        if own_keys is None:
            return d_queries, d_keys, d_values, None, None, None
        weights = (_own_scores(grouped, own_keys) - sums).exp()
        products = (grads[None] * own_values[:, :, :, None]).sum(-1).float()
        inner = (grads.float() * outs.float()).sum(-1)
        slopes = (weights * (products - inner) * queries.shape[-1] ** -0.5).to(queries.dtype)
        for slope, key in zip(slopes, own_keys, strict=True):
            d_grouped.addcmul_(slope[..., None], key[:, :, None])
        d_own_keys = (slopes[..., None] * grouped).sum(3)
        d_own_values = (weights.to(grad.dtype)[..., None] * grads).sum(3)
        return d_queries, d_keys, d_values, d_own_keys, d_own_values, None


def _grouped(rows: Tensor, kv_heads: int) -> Tensor:
    """``[S, heads, d]`` to ``[S, kv_heads, group, d]``."""
    return rows.view(len(rows), kv_heads, rows.shape[1] // kv_heads, rows.shape[-1])


def _fold(rows: Tensor) -> Tensor:
    """``[R, kv_heads, group, d]`` to ``[kv_heads, group * R, d]``."""
    folded: Tensor = rows.permute(1, 2, 0, 3).flatten(1, 2)
    return folded


def _unfold(rows: Tensor, block: _Block) -> Tensor:
    return rows.view(len(rows), -1, block.stop - block.start, rows.shape[-1]).permute(2, 0, 1, 3)


def _pair(keys: Tensor, values: Tensor, reach: slice) -> tuple[Tensor, Tensor]:
    return keys[reach].transpose(0, 1), values[reach].transpose(0, 1)


def _own_scores(grouped: Tensor, own_keys: Tensor) -> Tensor:
    """fp32 ``[steps, S, kv_heads, group]``."""
    scores: Tensor = (grouped[None] * own_keys[:, :, :, None]).sum(-1).float()
    return scores.mul_(grouped.shape[-1] ** -0.5)
