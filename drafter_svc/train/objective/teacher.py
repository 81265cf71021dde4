"""The target's distributions over the draft vocabulary, from its final states."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Rows whose logits exist at a time. Larger blocks leave the caches of a CPU.
_ROWS = 256
_PART = 1024


@dataclass(frozen=True, slots=True)
class TargetTopTokens:
    """What the full output layer says at each of T positions, which needs no second look.

    ``best`` is the argmax, int32 ``[T]``, -1 where nothing is taught; ``total`` the log-sum-exp of
    the logits, fp32 ``[T]`` (0 where it was not asked for).
    """

    best: Tensor
    total: Tensor


@torch.no_grad()
def judge(final: Tensor, head: Tensor, taught: Tensor, *, totals: bool) -> TargetTopTokens:
    """Verdicts at the positions ``taught`` (bool ``[T]``).

    ``final`` ``[T, H]`` is what the output layer reads (after the target's final norm), ``head``
    ``[vocab, H]`` its rows.
    """
    best = torch.full(taught.shape, -1, dtype=torch.int32, device=final.device)
    total = torch.zeros(taught.shape, device=final.device)
    for rows in torch.split(taught.nonzero().flatten(), _ROWS):
        logits = final[rows] @ head.T
        best[rows] = _argmax(logits).int()
        if totals:
            total[rows] = logits.float().logsumexp(-1)
    return TargetTopTokens(best, total)


def _argmax(logits: Tensor) -> Tensor:
    """The argmax of ``[R, vocab]``; on a CPU, where torch's own takes as long as half a product."""
    parts = torch.stack([part.amax(-1) for part in torch.split(logits, _PART, -1)], -1)
    starts = parts.argmax(-1, keepdim=True) * _PART
    inside = (starts + torch.arange(_PART, device=logits.device)).clamp(max=logits.shape[1] - 1)
    return inside.gather(1, logits.gather(1, inside).argmax(-1, keepdim=True))[:, 0]


@dataclass(frozen=True, slots=True)
class SoftTargets:
    """Soft targets of the N positions of a batch.

    ``probabilities`` is ``[N, draft_vocab]`` in the states' dtype, renormalized over the draft
    vocabulary (zeros where nothing is taught). ``mass`` fp32 ``[N]`` is the share of the whole
    distribution that the draft vocabulary has. ``draftable`` bool ``[N]`` says that the target's
    argmax is in the draft vocabulary.
    """

    probabilities: Tensor
    mass: Tensor
    draftable: Tensor


def draftable(verdicts: TargetTopTokens, vocabulary: Tensor) -> Tensor:
    """Where the target's argmax is in the draft vocabulary, which is bool ``[vocab]``."""
    return (verdicts.best >= 0) & vocabulary[verdicts.best.long().clamp(min=0)]


@torch.no_grad()
def teach(
    final: Tensor, draft_head: Tensor, vocabulary: Tensor, verdicts: TargetTopTokens
) -> SoftTargets:
    """Soft targets from ``final`` ``[N, H]``.

    ``draft_head`` ``[draft_vocab, H]`` are the output layer's rows of the draft ``vocabulary``
    (bool ``[vocab]``). ``mass`` is only meaningful where totals were asked for.
    """
    probabilities = final.new_zeros(len(final), len(draft_head))
    mass = torch.zeros_like(verdicts.total)
    taught = verdicts.best >= 0
    for rows in torch.split(taught.nonzero().flatten(), _ROWS):
        logits = (final[rows] @ draft_head.T).float()
        mass[rows] = (logits.logsumexp(-1) - verdicts.total[rows]).exp().clamp(max=1)
        probabilities[rows] = logits.softmax(-1).to(final.dtype)
    return SoftTargets(probabilities, mass, draftable(verdicts, vocabulary))
