"""Which tokens may be drawn: top_k, top_p and min_p, in this order, over logits / temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence as Items
from typing import Any, NamedTuple

import torch

from speckernels import to_device_async
from speckernels.device import is_async
from verifier_svc.request.types import Sampling

#: Tokens of a row that an accelerator orders: top_p 0.95 at temperature 1 seldom takes more.
CANDIDATES = 4096

# Logits further below the best are seldom needed to reach top_p; where they are, all are sorted.
_NEAR = 10.0


class _TopLogits(NamedTuple):
    """The largest logits / temperature of rows and their ids [rows, candidates], best first.

    Ties are in order of ids. `whole` is the sum of exp(scaled - max) over the vocabulary
    [rows, 1]; None where no row needs it.
    """

    values: torch.Tensor
    ids: torch.Tensor
    whole: torch.Tensor | None = None


class _Limits(NamedTuple):
    """What is asked of one row, or of several: float64 [rows, 1]. None where nothing is.

    A row of which less is asked than of others has the `_NEUTRAL` number in its place.
    """

    top_k: Any
    top_p: Any
    min_p: Any


_NEUTRAL = _Limits(math.inf, math.inf, 0.0)


class Candidates(NamedTuple):
    """What may be drawn: logits [rows, width], those left out -inf, and their tokens int64.

    `undecided`, bool [rows], are the rows that take more candidates; None where there are none.
    """

    logits: torch.Tensor
    ids: torch.Tensor
    undecided: torch.Tensor | None = None


def truncate(
    logits: torch.Tensor, samplings: Items[Sampling], candidates: int = CANDIDATES
) -> Candidates:
    """Leave out what may not be drawn, ties to the lowest id, from fp32 logits [rows, vocab].

    Each of the samplings [rows] `truncates` so large a vocabulary. An accelerator orders so many
    `candidates` of each row, since it would have to be waited for to find out how many it takes;
    rows that take more are to be truncated again, with the whole vocabulary. A CPU, where ordering
    is what costs time, takes a single row, and orders as few tokens as that takes.
    """
    asked = [_asked(sampling, logits.shape[-1]) for sampling in samplings]
    if is_async(logits.device):
        return _truncate_rows(logits, [s.temperature for s in samplings], asked, candidates)
    (limits,) = asked
    best = _likely(logits / samplings[0].temperature, limits)
    ids = best.ids[_stays(best, limits)]
    return Candidates(logits[:, ids], ids[None])


def _truncate_rows(
    logits: torch.Tensor, temperatures: Items[float], asked: Items[_Limits], candidates: int
) -> Candidates:
    scaled = logits / to_device_async(temperatures, logits.device, torch.float32)[:, None]
    weights = torch.exp(scaled.double() - scaled.amax(-1, keepdim=True))
    best = _largest(scaled, candidates)._replace(whole=weights.sum(-1, keepdim=True))
    limits = _together(asked, logits.device)
    stays = _stays(best, limits)
    # Tokens that equal the last candidate may be missing, and of those that top_k counts, more.
    undecided = (stays & (best.values == best.values[:, -1:])).any(-1)
    if limits.top_k is not None:
        undecided |= (limits.top_k.isfinite() & (limits.top_k > candidates))[:, 0]
    kept = torch.where(stays, logits.gather(1, best.ids), -math.inf)
    return Candidates(kept, best.ids, undecided & (candidates < logits.shape[-1]))


def _asked(sampling: Sampling, vocab: int) -> _Limits:
    return _Limits(
        sampling.top_k if 0 < sampling.top_k < vocab else None,
        sampling.top_p if sampling.top_p < 1 else None,
        sampling.min_p if sampling.min_p > 0 else None,
    )


def _together(asked: Items[_Limits], device: torch.device) -> _Limits:
    pairs = zip(zip(*asked, strict=True), _NEUTRAL, strict=True)
    filled = [[none if each is None else each for each in column] for column, none in pairs]
    columns = to_device_async(filled, device, torch.float64)[..., None]
    used = ([each is not None for each in column] for column in zip(*asked, strict=True))
    return _Limits(*(c if any(u) else None for c, u in zip(columns, used, strict=True)))


def _stays(best: _TopLogits, limits: _Limits) -> torch.Tensor:
    """Which of the candidates may be drawn, bool [rows, candidates]."""
    weights = torch.exp(best.values.double() - best.values[:, :1])
    stays = torch.ones_like(weights, dtype=torch.bool)
    whole = best.whole
    if limits.top_k is not None:
        stays = torch.arange(weights.shape[-1], device=weights.device) < limits.top_k
        stays = stays.expand_as(weights).clone()
        inside = (weights * stays).sum(-1, keepdim=True)
        whole = inside if whole is None else torch.where(limits.top_k.isfinite(), inside, whole)
    if limits.top_p is not None:
        assert whole is not None
        shares = weights / whole
        stays &= shares.cumsum(-1) - shares < limits.top_p
    if limits.min_p is not None:
        stays &= weights >= limits.min_p
    stays[:, 0] = True
    return stays


def _largest(scaled: torch.Tensor, count: int) -> _TopLogits:
    """The `count` largest of each row; of those that equal the last, it may be any."""
    if count >= scaled.shape[-1]:
        # A stable sort gives ties to the lowest id.
        values, ids = torch.sort(scaled, descending=True, stable=True)
        return _TopLogits(values, ids)
    ids = scaled.topk(count, sorted=False).indices.sort().values
    values, order = torch.sort(scaled.gather(1, ids), descending=True, stable=True)
    return _TopLogits(values, ids.gather(1, order))


def _likely(scaled: torch.Tensor, limits: _Limits) -> _TopLogits:
    """The tokens of one row [1, vocab] that may stay, all that are likelier, and few others."""
    if limits.top_k is not None:
        best = _largest(scaled, limits.top_k + 1)
        last = best.values[0, -2]
        return best if last > best.values[0, -1] else _at_least(scaled, last)
    top = scaled.max()
    if limits.top_p is None:
        return _at_least(scaled, top + math.log(limits.min_p) - 1e-3)
    weights = torch.exp(scaled.double() - top)
    whole = weights.sum(-1, keepdim=True)
    best = _at_least(scaled, top - _NEAR)
    if not weights.gather(1, best.ids).sum() > (limits.top_p + 1e-9) * whole:
        best = _largest(scaled, scaled.shape[-1])
    return best._replace(whole=whole)


def _at_least(scaled: torch.Tensor, floor: torch.Tensor) -> _TopLogits:
    """All of one row [1, vocab] that are not below, so that what is not a number is found."""
    row = scaled[0]
    ids = (row < floor).logical_not_().nonzero()[:, 0]
    values, order = torch.sort(row[ids], descending=True, stable=True)
    return _TopLogits(values[None], ids[order][None])
