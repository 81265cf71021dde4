"""The target's output head, in fp32 whatever the dtype of its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from specwire import kernels
from specwire.torch import PackedLinear, packable

# A bf16 result is within this share of the fp32 value that it was rounded from.
_ROUNDING = 2.0**-8


class Head:
    """Logits of final hidden states [rows, hidden_size] in the model's dtype.

    Logits rounded to bf16 would tie where fp32 ones differ, so they are never drawn from.
    """

    def __init__(self, linear: torch.nn.Module, config: Any) -> None:
        weight, bias = linear.weight, getattr(linear, "bias", None)
        assert isinstance(weight, torch.Tensor)
        self._weight = weight.detach()
        self._bias = None if bias is None else bias.detach().float()
        self._divisor = getattr(config, "logits_scaling", None) or 1.0
        self._factor = getattr(config, "logit_scale", None) or 1.0
        self._cap = getattr(config, "final_logit_softcapping", None)
        self._rough = PackedLinear(self._weight, bias) if packable(self._weight) else None
        if self._weight.device.type == "cpu":
            self._weight = self._weight.float()
        self.vocab_size: int = weight.shape[0]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """fp32 logits [rows, vocab]."""
        if self._weight.dtype == torch.float32:
            logits = F.linear(hidden.float(), self._weight, self._bias)
        else:
            logits = torch.mm(hidden, self._weight.T, out_dtype=torch.float32)
            logits = logits if self._bias is None else logits + self._bias
        if self._divisor != 1.0 or self._factor != 1.0:
            logits = logits * (self._factor / self._divisor)
        return torch.tanh(logits / self._cap) * self._cap if self._cap else logits

    def argmax(self, hidden: torch.Tensor) -> list[int]:
        """The most likely token of each row by its fp32 logits, ties to the lowest id."""
        if self._rough is None:
            return self.logits(hidden).argmax(-1).tolist()
        # bf16 logits tell which tokens can be the argmax; only those are scored in fp32.
        rows, tokens = kernels.near_best(self._rough(hidden), 2 * _ROUNDING)
        exact = (hidden[rows].float() * self._weight[tokens]).sum(-1)
        exact = exact if self._bias is None else exact + self._bias[tokens]
        winners: dict[int, tuple[float, int]] = {}
        for row, token, score in zip(rows.tolist(), tokens.tolist(), exact.tolist(), strict=True):
            if row not in winners or score > winners[row][0]:
                winners[row] = (score, token)
        return [winners[row][1] for row in range(len(hidden))]
