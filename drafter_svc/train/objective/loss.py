"""Losses of an unrolled chain against the target's distributions.

The output layer is part of the loss: fp32 logits exist for a block of rows at a time, in forward
only, where their gradient is formed at once. So memory does not grow with steps times vocabulary.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from drafter_svc.model.eagle import EagleDrafter
from drafter_svc.train.objective.teacher import SoftTargets
from drafter_svc.train.objective.ttt import ChainStep

_ROWS = 512
# The LK loss's own constant (arXiv 2602.23881): how fast overlap takes over from divergence.
_LK_ETA = 3.0
_FIXED_DECAY = 0.8


@dataclass(frozen=True, slots=True)
class Objective:
    """``loss`` is "kl" or "lk", ``weights`` of the chain steps are "survival" or "fixed".

    "kl": -sum p log q, with p renormalized over the draft vocabulary, at positions whose argmax
    can be drafted. "lk" (hybrid of arXiv 2602.23881): lambda KL + (1 - lambda)(1 - alpha), with
    alpha = sum min(p, q) of p as it is, at all positions, and lambda = exp(-3 mean alpha) for each
    step of each batch, without gradient.

    "fixed": step k counts 0.8**k. "survival": a column counts as its overlaps with the target at
    the steps before multiply to (without gradient); what serving never reaches is not worth
    capacity.
    """

    loss: str = "kl"
    weights: str = "survival"


def count_columns(plan: Sequence[ChainStep], draftable: Tensor) -> Tensor:
    """Columns over which each step's means run, fp32 ``[2, steps]``: of divergence, of overlap.

    ``draftable`` is bool ``[N]``, of positions.
    """
    live = torch.stack([step.live.sum() for step in plan])
    inside = torch.stack([(step.live & draftable[step.teacher]).sum() for step in plan])
    return torch.stack([inside, live]).float()


def chain_loss(
    drafter: EagleDrafter,
    plan: Sequence[ChainStep],
    hidden: Iterable[Tensor],
    teacher: SoftTargets,
    objective: Objective,
    counts: Tensor,
) -> tuple[Tensor, list[float]]:
    """Loss of an unrolled chain, and the mean divergence of each step for the log.

    ``counts`` (``count_columns``) may be of more batches than this one: the losses of all of
    them then add up to the masked mean over all.
    """
    total = drafter.lm_head.weight.new_zeros((), dtype=torch.float32)
    survival = torch.ones(len(teacher.mass), device=teacher.mass.device)
    means: list[float] = []
    for k, (step, states) in enumerate(zip(plan, hidden, strict=True)):
        taught = step.live & (teacher.draftable[step.teacher] | (objective.loss == "lk"))
        rows, columns = step.teacher[taught], step.columns[taught]
        if not len(rows):
            means.append(math.nan)
            continue
        normed = drafter.norm(states[taught])
        inside = teacher.draftable[rows].float()
        weights = survival[columns] if objective.weights == "survival" else _FIXED_DECAY**k
        divergence = inside * weights / counts[0, k].clamp(min=1)
        missed = torch.zeros_like(divergence)
        if objective.loss == "lk":
            share = math.exp(-_LK_ETA * float(_overlap(drafter, normed, teacher, rows).mean()))
            missed = torch.full_like(inside, 1 - share) * weights / counts[1, k].clamp(min=1)
            divergence = share * divergence
        coefficients = torch.stack([divergence, missed])
        value, losses, overlaps = _HeadLoss.apply(  # type: ignore[no-untyped-call]
            normed, drafter.lm_head.weight, teacher, rows, coefficients, objective.loss == "lk"
        )
        total = total + value
        means.append(float(losses[inside > 0].mean()))
        reached = torch.zeros_like(survival)
        reached[columns] = survival[columns] * overlaps
        survival = reached
    return total, means


@torch.no_grad()
def _overlap(drafter: EagleDrafter, normed: Tensor, teacher: SoftTargets, rows: Tensor) -> Tensor:
    """Sum of min(p, q) with p as it is over the whole vocabulary, ``[R]``."""
    parts = []
    for states, at in zip(torch.split(normed, _ROWS), torch.split(rows, _ROWS), strict=True):
        q = drafter.lm_head(states).float().softmax(-1)
        p = teacher.probabilities[at].float() * teacher.mass[at, None]
        parts.append(torch.minimum(p, q).sum(-1))
    return torch.cat(parts)


class _HeadLoss(torch.autograd.Function):
    """sum_r c0 KL_r + c1 (1 - alpha_r), its terms per row, and the overlaps per row.

    States ``[R, H]``, head ``[draft_vocab, H]``, ``coefficients`` fp32 ``[2, R]``. The overlap of
    a row is with p as it is when ``whole`` and with p renormalized otherwise.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        head: Tensor,
        teacher: SoftTargets,
        rows: Tensor,
        coefficients: Tensor,
        whole: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        d_states = torch.empty_like(states)
        slopes = states.new_empty(len(rows), len(head))
        losses, overlaps = torch.empty(2, len(rows), device=states.device)
        for start in range(0, len(rows), _ROWS):
            block = slice(start, start + _ROWS)
            p = teacher.probabilities[rows[block]].float()
            logits = (states[block] @ head.T).float()
            cross = (p[:, None] @ logits[:, :, None])[:, 0, 0]
            top = logits.amax(-1, keepdim=True)
            q = logits.sub_(top).exp_()
            norm = q.sum(-1, keepdim=True)
            losses[block] = (top + norm.log())[:, 0] - cross
            q.div_(norm)
            kl, tv = coefficients[:, block, None]
            if whole:
                actual = p * teacher.mass[rows[block], None]
                overlaps[block] = torch.minimum(actual, q).sum(-1)
                rising = (q < actual).float()
                gain = q * (rising - (q * rising).sum(-1, keepdim=True))
                slope = (kl * (q - p) - tv * gain).to(states.dtype)
            else:
                overlaps[block] = torch.minimum(p, q).sum(-1)
                slope = q.sub_(p).mul_(kl).to(states.dtype)
            d_states[block] = slope @ head
            slopes[block] = slope
        ctx.save_for_backward(d_states, slopes.T @ states)
        ctx.mark_non_differentiable(losses, overlaps)
        value = (coefficients[0] * losses).sum() + (coefficients[1] * (1 - overlaps)).sum()
        return value, losses, overlaps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        d_states, d_head = ctx.saved_tensors
        scale = grad.to(d_states.dtype)
        return d_states * scale, d_head * scale, None, None, None, None
