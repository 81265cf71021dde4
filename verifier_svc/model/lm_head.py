"""The target's output head, in fp32 whatever the dtype of its weights."""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Any

import torch
from torch.nn import functional as F

import speckernels as kernels
from speckernels import to_device_async
from speckernels.packed_linear import PackedLinear, packable


class LMHead:
    """Logits of final hidden states [rows, hidden_size] in the model's dtype.

    Logits rounded to bf16 would tie where fp32 ones differ, so they are never drawn from.
    """

    def __init__(self, linear: torch.nn.Module, config: Any) -> None:
        weight, bias = linear.weight, getattr(linear, "bias", None)
        assert isinstance(weight, torch.Tensor)
        self._bias = None if bias is None else bias.detach().float()
        #: What the model multiplies its logits by.
        self.scale = 1.0
        self._cap = getattr(config, "final_logit_softcapping", None)
        self._rough = PackedLinear(weight.detach(), bias) if packable(weight) else None
        # Sums of its results are in fp32 before they are rounded: it gives exact logits as well.
        self._product = None if self._rough is None else self._rough.product
        # The weight itself would keep the file that it is mapped from in memory.
        self._weight: torch.Tensor | None = None
        if self._product is None:
            self._weight = weight.detach().float() if weight.is_cpu else weight.detach()
        self.vocab_size: int = weight.shape[0]

    def score(
        self, hidden: torch.Tensor, greedy: Items[bool]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`argmax` of the rows that are `greedy`, and `logits` of the others, if there are any."""
        if all(greedy):
            return self.argmax(hidden), None
        if not any(greedy):
            return hidden.new_empty(0, dtype=torch.int64), self.logits(hidden)
        first = to_device_async([row for row, yes in enumerate(greedy) if yes], hidden.device)
        others = to_device_async([row for row, yes in enumerate(greedy) if not yes], hidden.device)
        return self.argmax(hidden[first]), self.logits(hidden[others])

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """fp32 logits [rows, vocab]."""
        if self._product is not None:
            logits = kernels.linear(hidden, self._product, torch.float32)
        else:
            logits = self._multiply(hidden)
        if self.scale != 1.0:
            logits = logits * self.scale
        return torch.tanh(logits / self._cap) * self._cap if self._cap else logits

    def _multiply(self, hidden: torch.Tensor) -> torch.Tensor:
        assert self._weight is not None
        if self._weight.dtype == torch.float32:
            return F.linear(hidden.float(), self._weight, self._bias)
        logits = torch.mm(hidden, self._weight.T, out_dtype=torch.float32)
        return logits if self._bias is None else logits + self._bias

    def argmax(self, hidden: torch.Tensor) -> torch.Tensor:
        """The most likely token of each row by its fp32 logits, ties to the lowest id.

        Returns int64 [rows] on their device. -1 stands for a row that has a NaN, or none that is
        finite among its largest logits.
        """
        if self._rough is None:
            return kernels.sample(self.logits(hidden))
        if self._product is not None:
            return kernels.argmax_logits(hidden, self._product)
        # bf16 logits tell which tokens can be the argmax; only those are scored in fp32.
        assert self._weight is not None
        rough = self._rough(hidden).float()
        top = rough.amax(-1, keepdim=True)
        rows, tokens = (rough >= top - 2 * kernels.ROUNDING * top.abs()).nonzero(as_tuple=True)
        exact = (hidden[rows].float() * self._weight[tokens]).sum(-1)
        exact = exact if self._bias is None else exact + self._bias[tokens]
        winners: dict[int, tuple[float, int]] = {}
        for row, token, score in zip(rows.tolist(), tokens.tolist(), exact.tolist(), strict=True):
            if row not in winners or score > winners[row][0]:
                winners[row] = (score, token)
        return torch.tensor([winners.get(row, (0.0, -1))[1] for row in range(len(hidden))])
