"""Which token a chain proposes: what the verifier is likely to draw from the same logits.

The verifier draws argmin E / p with noise E that both ends derive from the request's seed, so the
drafter adds the same noise to its own scores (coupling without communication, Daliri et al. 2024).
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from speckernels import SamplingKeys, to_device_async
from specwire.messages import SequenceContext
from specwire.philox import signed64


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


def noise_of(
    openings: Sequence[SequenceContext],
    positions: Sequence[int],
    draft_temperature: float,
    device: torch.device,
) -> SamplingKeys | None:
    """The noise of one row for each opening, at positions of the drawn tokens; None: all greedy."""
    if all(opening.temperature == 0 for opening in openings):
        return None
    seeds = [signed64(opening.seed) for opening in openings]
    choices = [opening.choice_index for opening in openings]
    temperatures = [opening.temperature * draft_temperature for opening in openings]
    keys = to_device_async([seeds, list(positions), choices], device)
    scales = to_device_async(temperatures, device, torch.float32)
    return SamplingKeys(keys[0], keys[1], keys[2], scales)
