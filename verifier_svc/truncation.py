"""Which tokens may be drawn: top_k, top_p and min_p, in this order, over logits / temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence as Items
from typing import NamedTuple

import torch

from specwire.torch import deferred, put
from verifier_svc.generation import Sampling

#: Tokens of a row that an accelerator orders: top_p 0.95 at temperature 1 seldom takes more.
CANDIDATES = 4096

# Logits further below the best are seldom needed to reach top_p; where they are, all are sorted.
_NEAR = 10.0


class _Best(NamedTuple):
    """The largest logits / temperature of rows and their ids [rows, candidates], best first.

    Ties are in order of ids. `whole` is the sum of exp(scaled - max) over the vocabulary
    [rows, 1]; None where no row needs it.
    """

    values: torch.Tensor
    ids: torch.Tensor
    whole: torch.Tensor | None = None


class _Limits(NamedTuple):
    """What is asked of rows, float64 [rows, 1]; None or infinite where nothing is."""

    temperature: torch.Tensor
    top_k: torch.Tensor | None
    top_p: torch.Tensor | None
    min_p: torch.Tensor | None


def truncate(
    logits: torch.Tensor, samplings: Items[Sampling], candidates: int = CANDIDATES
) -> tuple[torch.Tensor, torch.Tensor]:
    """Leave out what may not be drawn, ties to the lowest id, from fp32 logits [rows, vocab].

    Each of the samplings [rows] `truncates` so large a vocabulary. An accelerator orders so many
    `candidates` of each row, since it would have to be waited for to find out how many it takes.
    A CPU orders as few as it takes: there, ordering is what costs time.

    Returns the logits with -inf for what is left out, and which rows, bool [rows], take more
    candidates: those are to be truncated again, with the whole vocabulary.
    """
    vocab = logits.shape[-1]
    kept = torch.full_like(logits, -math.inf)
    if not deferred(logits.device):
        for i, sampling in enumerate(samplings):
            row = logits[i : i + 1]
            limits = _limits([sampling], vocab, row.device)
            best = _likely(row / limits.temperature.float(), sampling)
            ids = best.ids[_stays(best, limits)]
            kept[i, ids] = logits[i, ids]
        return kept, torch.zeros(len(logits), dtype=torch.bool)
    limits = _limits(samplings, vocab, logits.device)
    scaled = logits / limits.temperature.float()
    weights = torch.exp(scaled.double() - scaled.amax(-1, keepdim=True))
    best = _largest(scaled, candidates)._replace(whole=weights.sum(-1, keepdim=True))
    stays = _stays(best, limits)
    kept.scatter_(1, best.ids, torch.where(stays, logits.gather(1, best.ids), -math.inf))
    # Tokens that equal the last candidate may be missing, and of those that top_k counts, more.
    undecided = (stays & (best.values == best.values[:, -1:])).any(-1)
    if limits.top_k is not None:
        undecided |= (limits.top_k.isfinite() & (limits.top_k > candidates))[:, 0]
    return kept, undecided & (candidates < vocab)


def _limits(samplings: Items[Sampling], vocab: int, device: torch.device) -> _Limits:
    top_k = [s.top_k if 0 < s.top_k < vocab else math.inf for s in samplings]
    top_p = [s.top_p if s.top_p < 1 else math.inf for s in samplings]
    min_p = [s.min_p for s in samplings]
    rows = put([[s.temperature for s in samplings], top_k, top_p, min_p], device, torch.float64)
    columns = rows[..., None].unbind()
    return _Limits(
        columns[0],
        columns[1] if min(top_k) < vocab else None,
        columns[2] if min(top_p) < 1 else None,
        columns[3] if max(min_p) > 0 else None,
    )


def _stays(best: _Best, limits: _Limits) -> torch.Tensor:
    """Which of the candidates may be drawn, bool [rows, candidates]."""
    weights = torch.exp(best.values.double() - best.values[:, :1])
    stays = torch.ones_like(weights, dtype=torch.bool)
    whole = best.whole
    if limits.top_k is not None:
        stays = torch.arange(weights.shape[-1], device=weights.device) < limits.top_k
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


def _largest(scaled: torch.Tensor, count: int) -> _Best:
    """The `count` largest of each row; of those that equal the last, it may be any."""
    if count >= scaled.shape[-1]:
        # A stable sort gives ties to the lowest id.
        values, ids = torch.sort(scaled, descending=True, stable=True)
        return _Best(values, ids)
    ids = scaled.topk(count, sorted=False).indices.sort().values
    values, order = torch.sort(scaled.gather(1, ids), descending=True, stable=True)
    return _Best(values, ids.gather(1, order))


def _likely(scaled: torch.Tensor, sampling: Sampling) -> _Best:
    """The tokens of one row [1, vocab] that may stay, all that are likelier, and few others."""
    if 0 < sampling.top_k < scaled.shape[-1]:
        best = _largest(scaled, sampling.top_k + 1)
        last = best.values[0, -2]
        return best if last > best.values[0, -1] else _at_least(scaled, last)
    top = scaled.max()
    if sampling.top_p >= 1:
        return _at_least(scaled, top + math.log(sampling.min_p) - 1e-3)
    weights = torch.exp(scaled.double() - top)
    whole = weights.sum(-1, keepdim=True)
    best = _at_least(scaled, top - _NEAR)
    if not weights.gather(1, best.ids).sum() > (sampling.top_p + 1e-9) * whole:
        best = _largest(scaled, scaled.shape[-1])
    return best._replace(whole=whole)


def _at_least(scaled: torch.Tensor, floor: torch.Tensor) -> _Best:
    """All of one row [1, vocab] that are not below, so that what is not a number is found."""
    row = scaled[0]
    ids = (row < floor).logical_not_().nonzero()[:, 0]
    values, order = torch.sort(row[ids], descending=True, stable=True)
    return _Best(values[None], ids[order][None])
