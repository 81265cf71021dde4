"""Penalties and bias of sequences over the draft vocabulary, as rows of one tensor."""

from collections.abc import Sequence

import torch
from torch import Tensor

from drafter_svc.inference.row_numbers import RowNumbers
from drafter_svc.inference.sampling import DraftVocabulary
from speckernels import to_device_async
from specwire.messages import SequenceContext

# What is told of each token: how often it occurred, how often in the output, and its bias.
_SEEN, _COUNTED, _BIAS = range(3)


class Penalties:
    """Those of one sequence. What is told of its tokens waits here for the next chain."""

    def __init__(self, opening: SequenceContext, vocabulary: DraftVocabulary, number: int) -> None:
        """Take the row ``number`` of the table, which is zeros."""
        self.number = number
        self.factors = (
            opening.repetition_penalty,
            opening.frequency_penalty,
            opening.presence_penalty,
        )
        self._vocabulary = vocabulary
        self._output_start = opening.output_start
        self._length = 0
        self._places: list[int] = []
        self._additions: list[float] = []
        for target, bias in opening.logit_bias.items():
            self._tell(_BIAS, [target], bias)
        self.extend([opening.first_token])

    def extend(self, target_ids: Sequence[int]) -> None:
        """The sequence goes on with ``target_ids``."""
        output = max(0, self._output_start - self._length)
        self._length += len(target_ids)
        self._tell(_SEEN, target_ids, 1.0)
        self._tell(_COUNTED, target_ids[output:], 1.0)

    def news(self) -> tuple[list[int], list[float]]:
        """Places of the row ``[3 * draft]``, and what to add there, since this was last asked."""
        news = self._places, self._additions
        self._places, self._additions = [], []
        return news

    def _tell(self, plane: int, target_ids: Sequence[int], number: float) -> None:
        first = plane * len(self._vocabulary)
        draft_ids = self._vocabulary.to_draft(target_ids)
        self._places += [first + draft_id for draft_id in draft_ids]
        self._additions += [number] * len(draft_ids)


class PenaltyTable:
    """The penalties of all sequences that have some, fp32 ``[capacity, 3, draft]``."""

    def __init__(self, vocabulary: DraftVocabulary, device: torch.device) -> None:
        self._vocabulary = vocabulary
        self._numbers = RowNumbers()
        self._rows = torch.zeros(0, 3, len(vocabulary), device=device)

    @torch.inference_mode()
    def open(self, opening: SequenceContext) -> Penalties | None:
        """Penalties of a new sequence that knows its first token; None where it has none."""
        neutral = (opening.repetition_penalty, opening.presence_penalty, opening.frequency_penalty)
        if neutral == (1.0, 0.0, 0.0) and not opening.logit_bias:
            return None
        number = self._numbers.take()
        if number >= len(self._rows):
            more = self._rows.new_zeros(max(1, number), *self._rows.shape[1:])
            self._rows = torch.cat([self._rows, more])
        self._rows[number].zero_()
        return Penalties(opening, self._vocabulary, number)

    def close(self, penalties: Penalties) -> None:
        """The sequence is no more."""
        self._numbers.give(penalties.number)

    def of(self, batch: Sequence[Penalties]) -> "PenaltyRows":
        """Those of a batch of chains, which guesses extend. The device is not waited for."""
        width = self._rows[0].numel()
        device = self._rows.device
        places: list[int] = []
        additions: list[float] = []
        for each in batch:
            at, added = each.news()
            places += [each.number * width + place for place in at]
            additions += added
        if places:
            there = to_device_async(additions, device, torch.float32)
            self._rows.view(-1).index_add_(0, to_device_async(places, device), there)
        numbers = to_device_async([each.number for each in batch], device)
        factors = to_device_async([each.factors for each in batch], device, torch.float32)
        return PenaltyRows(self._rows.index_select(0, numbers), factors)


class PenaltyRows:
    """A copy of the penalties of some chains, in their order."""

    def __init__(self, told: Tensor, factors: Tensor) -> None:
        """Take rows ``[chains, 3, draft]``, and factors as `Penalties` has them ``[chains, 3]``."""
        self._told = told
        self._factors = factors[:, :, None]

    def apply(self, logits: Tensor) -> Tensor:
        """Processed logits of raw ones of the first chains ``[n, draft]``: fp32, as the verifier's.

        They are changed in the order that the verifier keeps.
        """
        logits = logits.float()
        seen, count, bias = self._told[: len(logits)].unbind(1)
        repetition, frequency, presence = self._factors[: len(logits)].unbind(1)
        penalized = torch.where(logits > 0, logits / repetition, logits * repetition)
        logits = torch.where(seen > 0, penalized, logits)
        logits = logits - frequency * count
        logits = logits - presence * (count > 0)
        return logits + bias

    def extend(self, draft_ids: Tensor) -> None:
        """The first chains go on with ``draft_ids``, int64 ``[n]``; -1 stands for the first id."""
        counts = self._told[: len(draft_ids), :_BIAS]
        at = draft_ids.clamp(min=0)[:, None, None].expand(-1, _BIAS, 1)
        counts.scatter_add_(2, at, torch.ones_like(at, dtype=counts.dtype))
