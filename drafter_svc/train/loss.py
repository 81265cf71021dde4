"""Soft targets over the draft vocabulary and the loss of an unrolled chain."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from drafter_svc.eagle import EagleDrafter
from drafter_svc.train.data import Batch
from drafter_svc.train.ttt import ChainStep


@dataclass(frozen=True, slots=True)
class Teacher:
    """The target's distributions at the M positions that predict an answer token.

    ``row`` is int64 ``[B, T]``: the row of a position, -1 elsewhere. ``probabilities`` is
    ``[M, draft_vocab]``, renormalized over the draft vocabulary; ``best`` is int64 ``[M]``, the
    draft id of the target's argmax, -1 when the draft vocabulary does not have it.
    """

    row: Tensor
    probabilities: Tensor
    best: Tensor


@torch.no_grad()
def teach(batch: Batch, final: Tensor, head: Tensor, draft_ids: Tensor) -> Teacher:
    """Soft targets of a batch.

    ``final`` ``[B, T, H]`` is what the target's output layer reads, so it is after the final norm;
    ``head`` ``[vocab, H]`` are that layer's rows, ``draft_ids`` int64 ``[draft_vocab]``.
    """
    predicts = torch.zeros_like(batch.answer)
    predicts[:, :-1] = batch.answer[:, 1:]
    row = torch.full_like(batch.ids, -1)
    row[predicts] = torch.arange(int(predicts.sum()))
    logits = final[predicts] @ head.T
    draftable = logits[:, draft_ids]
    value, best = draftable.max(-1)
    best[value < logits.amax(-1)] = -1
    return Teacher(row, draftable.float().softmax(-1), best)


def soft_cross_entropy(logits: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Per row of fp32 ``[N, draft_vocab]``: -sum p log q, and the overlap sum min(p, q)."""
    log_q = logits.log_softmax(-1)
    loss = -(probabilities * log_q).sum(-1)
    with torch.no_grad():
        overlap = torch.minimum(probabilities, log_q.exp()).sum(-1)
    return loss, overlap


def chain_loss(
    drafter: EagleDrafter, steps: Iterable[ChainStep], teacher: Teacher
) -> tuple[Tensor, list[float]]:
    """Loss of an unrolled chain, and its mean cross-entropy per step for the log.

    A column counts at a step where it is live and the target's argmax can be drafted. Its weight
    at step k is its survival, the product of its overlaps with the target at the steps before
    (no gradient): a token that serving never reaches is not worth capacity. Each step's weighted
    sum is divided by the number of columns that count.
    """
    total = drafter.lm_head.weight.new_zeros((), dtype=torch.float32)
    means: list[float] = []
    survival = torch.ones(teacher.row.shape)
    for step in steps:
        rows = teacher.row.gather(1, step.teacher)
        taught = step.live & (teacher.best[rows] >= 0)
        rows = rows[taught]
        loss, overlap = soft_cross_entropy(
            drafter.logits(step.hidden[taught]), teacher.probabilities[rows]
        )
        weights = survival[:, step.columns][taught]
        if len(loss):
            total = total + (weights * loss).sum() / len(loss)
        means.append(float(loss.detach().mean()) if len(loss) else math.nan)
        reached = torch.zeros(taught.shape)
        reached[taught] = weights * overlap
        survival[:, step.columns] = reached
    return total, means
