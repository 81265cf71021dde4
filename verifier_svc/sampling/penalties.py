"""What changes single logits before they are drawn from: penalties, bias and masks."""

from __future__ import annotations

import math
from collections.abc import Collection
from collections.abc import Sequence as Items
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from speckernels import to_device_async
from verifier_svc.sampling.sampling_row import SamplingRow


def penalize(logits: torch.Tensor, rows: Items[SamplingRow]) -> torch.Tensor:
    """Repetition penalty, presence and frequency penalty, bias and masks, in this order.

    Takes fp32 logits [rows, vocab] and returns them changed, or themselves where nothing applies.
    """
    if all(row.sampling.plain_scores and not row.banned for row in rows):
        return logits
    seen, counted, biased, banned = _Places(), _Places(), _Places(), _Places()
    for i, row in enumerate(rows):
        sampling, counts, bias = row.sampling, row.output_counts, row.sampling.logit_bias
        if sampling.repetition_penalty != 1.0:
            seen.add(i, {*row.prompt, *counts}, sampling.repetition_penalty)
        if sampling.presence_penalty or sampling.frequency_penalty:
            often = np.float32(sampling.frequency_penalty) * _numbers(counts.values())
            counted.add(i, counts, np.float32(sampling.presence_penalty) + often)
        biased.add(i, bias, _numbers(bias.values()))
        banned.add(i, row.banned, -math.inf)
    scores = logits.clone()
    if seen:
        at, factors = seen.on(logits.device)
        picked = scores[at]
        scores[at] = torch.where(picked > 0, picked / factors, picked * factors)
    if counted:
        at, penalties = counted.on(logits.device)
        scores[at] -= penalties
    if biased:
        at, biases = biased.on(logits.device)
        scores[at] += biases
    if banned:
        at, masks = banned.on(logits.device)
        scores[at] = masks
    return scores


def _numbers(values: Collection[float]) -> npt.NDArray[np.float32]:
    return np.fromiter(values, np.float32, len(values))


class _Places:
    """Tokens of rows, each at most once, and a number for each."""

    def __init__(self) -> None:
        self._at: list[npt.NDArray[np.int64]] = []
        self._values: list[npt.NDArray[np.float32]] = []

    def __bool__(self) -> bool:
        return bool(self._at)

    def add(self, row: int, tokens: Collection[int], values: Any) -> None:
        """Add tokens of a row, and numbers of the same length, or one for all."""
        if tokens:
            ids = np.fromiter(tokens, np.int64, len(tokens))
            self._at.append(np.stack([np.full_like(ids, row), ids]))
            self._values.append(np.full(len(ids), values, np.float32))

    def on(self, device: torch.device) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Rows and tokens int64 [places], and their numbers fp32 [places]."""
        at = to_device_async(np.concatenate(self._at, 1), device)
        return at.unbind(), to_device_async(np.concatenate(self._values), device)
