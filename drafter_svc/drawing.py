"""Which token a chain proposes: what the verifier is likely to draw from the same logits.

The verifier draws argmin E / p with noise E that both ends derive from the request's seed, so the
drafter adds the same noise to its own scores (coupling without communication, Daliri et al. 2024).
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from specwire.draft import Opening
from specwire.noise import signed64, token_words

# Noise is computed for the likeliest draft tokens only. It can leave out the verifier's token,
# which costs that draft and nothing else.
CANDIDATES = 64


class DraftVocabulary:
    """Target ids of the draft tokens, int64 ``[draft]``, and the way back."""

    def __init__(self, target_ids: Tensor, vocab_size: int) -> None:
        self.target_ids = target_ids
        self._on_host: npt.NDArray[np.int64] = target_ids.cpu().numpy()
        self._draft_ids = {int(target): draft for draft, target in enumerate(self._on_host)}

    def __len__(self) -> int:
        return len(self._on_host)

    def to_target(self, draft_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Target ids of draft ids on the host."""
        return self._on_host[draft_ids]

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


def draw(
    logits: Tensor,
    openings: Sequence[Opening],
    positions: Sequence[int],
    vocabulary: DraftVocabulary,
    draft_temperature: float,
) -> Tensor:
    """Draw one draft id for each row with the noise of its sequence, at its temperature above 0.

    ``logits`` are processed, fp32 ``[n, draft]``; ``positions`` are the absolute positions of the
    drawn tokens. Returns int64 ``[n]``.
    """
    values, ids = logits.topk(min(CANDIDATES, logits.shape[-1]), dim=-1, sorted=False)
    draft_ids = ids.cpu().numpy()
    seeds, choices, temperatures = (
        np.array(column)[:, None]
        for column in zip(
            *((signed64(o.seed), o.choice_index, o.temperature) for o in openings), strict=True
        )
    )
    noise = _exponentials(
        seeds, np.array(positions)[:, None], vocabulary.to_target(draft_ids), choices
    )
    scores = values.double().cpu().numpy() / (draft_temperature * temperatures) - np.log(noise)
    best = scores.argmax(-1)[:, None]
    return torch.from_numpy(np.take_along_axis(draft_ids, best, -1)[:, 0]).to(logits.device)


def _exponentials(
    seeds: npt.NDArray[np.int64],
    positions: npt.NDArray[np.int64],
    token_ids: npt.NDArray[np.int64],
    choices: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    """As ``specwire.torch.exponentials``; numpy takes a third of the time for so few tokens."""
    words = np.stack(token_words(seeds, positions, token_ids >> 2, choices))
    word = np.take_along_axis(words, (token_ids & 3)[None], 0)[0]
    noise: npt.NDArray[np.float64] = -np.log1p(-(word + 0.5) * 2.0**-32)
    return noise
