"""Held-out measurements: how often the chain agrees with the target, step by step."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor

from drafter_svc.eagle import EagleDrafter
from drafter_svc.train.data import Batch
from drafter_svc.train.target import Target
from drafter_svc.train.ttt import chain_columns, unroll

#: Candidates for t_d.
TEMPERATURES = tuple(round(0.4 + 0.05 * index, 2) for index in range(13))


@dataclass(frozen=True, slots=True)
class Measurement:
    """Per chain step, over the live columns, teacher-forced on held-out text.

    ``top1`` is the share where drafter and target have the same argmax; ``overlap`` is the mean
    of sum min(p, q) at temperature 1 over the whole vocabulary (1 - TV), with the drafter's
    logits divided by ``draft_temperature``, the candidate that is best over all steps.
    """

    top1: list[float]
    overlap: list[float]
    draft_temperature: float
    positions: int

    @property
    def acceptance_length(self) -> float:
        """Tokens per verification, bonus included, if agreement at each step were independent."""
        return 1.0 + sum(accumulate(self.top1, mul), start=0.0)


@torch.no_grad()
def measure(
    drafter: EagleDrafter,
    target: Target,
    draft_ids: Tensor,
    batches: Iterable[Batch],
    *,
    steps: int,
    stride: int = 1,
) -> Measurement:
    """Unroll ``steps`` steps from every ``stride``-th answer position of ``batches``."""
    counts = torch.zeros(steps)
    agreed = torch.zeros(steps)
    overlaps = torch.zeros(steps, len(TEMPERATURES))
    for batch in batches:
        features, final = target.capture(batch.ids, drafter.config.aux_layers)
        columns = chain_columns(batch, stride, 0)
        chain = unroll(drafter, target.embedding, batch, features, steps=steps, columns=columns)
        for index, step in enumerate(chain):
            live = step.live & torch.isin(step.columns, columns)
            logits = drafter.logits(step.hidden[live])
            rows, positions = live.nonzero()[:, 0], step.teacher[live]
            teacher = (final[rows, positions] @ target.head.T).float()
            counts[index] += len(logits)
            agreed[index] += (draft_ids[logits.argmax(-1)] == teacher.argmax(-1)).sum()
            probabilities = teacher.softmax(-1)[:, draft_ids]
            for candidate, temperature in enumerate(TEMPERATURES):
                drafted = (logits / temperature).softmax(-1)
                overlaps[index, candidate] += torch.minimum(probabilities, drafted).sum()
    means = overlaps / counts[:, None].clamp(min=1)
    best = int(means.mean(dim=0).argmax())
    return Measurement(
        top1=(agreed / counts.clamp(min=1)).tolist(),
        overlap=means[:, best].tolist(),
        draft_temperature=TEMPERATURES[best],
        positions=int(counts[0]),
    )
