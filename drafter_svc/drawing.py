"""Which token a chain proposes: what the verifier is likely to draw from the same logits.

The verifier draws argmin E / p with noise E that both ends derive from the request's seed, so the
drafter adds the same noise to its own scores (coupling without communication, Daliri et al. 2024).
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from specwire.draft import Opening
from specwire.kernels import Noise, put
from specwire.noise import signed64


class DraftVocabulary:
    """Target ids of the draft tokens, int64 ``[draft]`` and as a list, and the way back."""

    def __init__(self, target_ids: Tensor, vocab_size: int) -> None:
        self.target_ids = target_ids
        self.ids: list[int] = target_ids.tolist()
        self._draft_ids = {target: draft for draft, target in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self._draft_ids)

    def to_draft(self, target_ids: Iterable[int]) -> list[int]:
        """Draft ids of those target ids that can be drafted."""
        known = self._draft_ids
        return [known[target] for target in target_ids if target in known]


class Penalties:
    """Penalties and bias of one sequence over the draft vocabulary, fp32 ``[draft]``."""

    def __init__(self, opening: Opening, vocabulary: DraftVocabulary, device: torch.device) -> None:
        self._opening = opening
        self._vocabulary = vocabulary
        self._seen = torch.zeros(len(vocabulary), dtype=torch.bool, device=device)
        self._count = torch.zeros(len(vocabulary), dtype=torch.float32, device=device)
        self._bias = torch.zeros(len(vocabulary), dtype=torch.float32, device=device)
        for target, bias in opening.logit_bias.items():
            self._bias[vocabulary.to_draft([target])] = bias
        self._length = 0

    @classmethod
    def of(
        cls, opening: Opening, vocabulary: DraftVocabulary, device: torch.device
    ) -> "Penalties | None":
        """The penalties of ``opening``, or None where it has none."""
        neutral = (opening.repetition_penalty, opening.presence_penalty, opening.frequency_penalty)
        if neutral == (1.0, 0.0, 0.0) and not opening.logit_bias:
            return None
        penalties = cls(opening, vocabulary, device)
        penalties.extend([opening.first_token])
        return penalties

    def extend(self, target_ids: Sequence[int]) -> None:
        """The sequence goes on with ``target_ids``."""
        seen = self._vocabulary.to_draft(target_ids)
        output = max(0, self._opening.output_start - self._length)
        counted = self._vocabulary.to_draft(target_ids[output:])
        self._length += len(target_ids)
        self._seen[seen] = True
        ones = torch.ones(len(counted), device=self._count.device)
        self._count.index_add_(0, torch.tensor(counted, device=ones.device).long(), ones)

    def fork(self) -> "Penalties":
        """A copy, to be extended by guesses."""
        copy = object.__new__(Penalties)
        copy.__dict__.update(self.__dict__)
        copy._seen, copy._count = self._seen.clone(), self._count.clone()
        return copy

    def apply(self, logits: Tensor) -> Tensor:
        """Processed logits of raw ones, fp32 ``[draft]``, in the order that the verifier keeps."""
        opening = self._opening
        repetition = opening.repetition_penalty
        penalized = torch.where(logits > 0, logits / repetition, logits * repetition)
        logits = torch.where(self._seen, penalized, logits)
        logits = logits - opening.frequency_penalty * self._count
        logits = logits - opening.presence_penalty * (self._count > 0)
        return logits + self._bias


def noise_of(
    openings: Sequence[Opening],
    positions: Sequence[int],
    draft_temperature: float,
    device: torch.device,
) -> Noise | None:
    """The noise of one row for each opening, at positions of the drawn tokens; None: all greedy."""
    if all(opening.temperature == 0 for opening in openings):
        return None
    seeds = [signed64(opening.seed) for opening in openings]
    choices = [opening.choice_index for opening in openings]
    temperatures = [opening.temperature * draft_temperature for opening in openings]
    keys = put([seeds, list(positions), choices], device)
    scales = put(temperatures, device, torch.float32)
    return Noise(keys[0], keys[1], keys[2], scales)
