"""What limits acceptance: how sure the target is, the draft vocabulary, the draft length."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TextIO

import torch
from torch import Tensor

from drafter_svc.train.evaluation.replay import Rounds, walk

#: Draft lengths from 1 to this one are compared.
LONGEST = 8
# Rows whose whole distributions exist at a time.
_ROWS = 256


@dataclass(frozen=True, slots=True)
class RoundCosts:
    """Milliseconds of a target forward with one token, of a chain step, and of each further row."""

    forward: float
    chain_step: float
    row: float

    def speed_up(self, length: int, acceptance_length: float) -> float:
        """Of drafts of ``length`` against decoding without drafts."""
        round_time = self.forward + length * (self.chain_step + self.row)
        return acceptance_length * self.forward / round_time


@dataclass(slots=True)
class Limits:
    """Over the answers of one file; ``by_length[k - 1]`` are the rounds of chains of k drafts.

    ``certainty`` adds up the probability of the target's most likely token at each answer token,
    ``draftable`` counts those in the draft vocabulary.
    """

    tokens: int = 0
    draftable: int = 0
    certainty: float = 0.0
    by_length: list[Rounds] = field(
        default_factory=lambda: [Rounds(length) for length in range(1, LONGEST + 1)]
    )

    @torch.no_grad()
    def add(
        self,
        ids: Sequence[int],
        prompt: int,
        *,
        final: Tensor,
        head: Tensor,
        draft_ids: Tensor,
        chains: Sequence[Sequence[int]],
    ) -> None:
        """Count a text whose first ``prompt`` tokens are no answer.

        ``final`` ``[T, H]`` is what the output layer ``head`` ``[vocab, H]`` reads. ``chains`` are
        as in ``walk``, of at least ``LONGEST`` drafts.
        """
        self.tokens += len(ids) - prompt
        self.draftable += int(torch.isin(torch.tensor(ids[prompt:]), draft_ids).sum())
        for states in torch.split(final[prompt - 1 : len(ids) - 1], _ROWS):
            logits = (states @ head.T).float()
            self.certainty += float((logits.amax(-1) - logits.logsumexp(-1)).exp().sum())
        for rounds in self.by_length:
            walk(rounds, ids, prompt, [chain[: rounds.length] for chain in chains])

    @property
    def acceptance_lengths(self) -> list[float]:
        return [rounds.acceptance_length for rounds in self.by_length]

    @property
    def shares(self) -> dict[str, float]:
        """Mean top probability of the target, coverage, and the share of rounds in loops."""
        rounds = self.by_length[-1].looped
        return {
            "target_top_probability": self.certainty / max(1, self.tokens),
            "coverage": self.draftable / max(1, self.tokens),
            "rounds_in_loops": sum(rounds) / max(1, len(rounds)),
        }


def limits_summary(limits: Limits, costs: RoundCosts | None) -> dict[str, object]:
    """As one JSON object; ``best_draft_length`` and speed-ups where the costs are known."""
    found: dict[str, object] = {
        "answer_tokens": limits.tokens,
        **{name: round(share, 4) for name, share in limits.shares.items()},
        "acceptance_length_by_draft_length": [round(x, 3) for x in limits.acceptance_lengths],
    }
    if costs:
        speed_ups = _speed_ups(limits.acceptance_lengths, costs)
        found["speed_up_by_draft_length"] = [round(value, 3) for value in speed_ups]
        found["best_draft_length"] = _best(speed_ups)
    return found


def print_limits(results: Mapping[str, Limits], costs: RoundCosts | None, out: TextIO) -> None:
    """Print the mean over the files, and the draft length that it is fastest with."""
    files = list(results.values())
    shares = {name: fmean(file.shares[name] for file in files) for name in files[0].shares}
    print(", ".join(f"{name} {share:.3f}" for name, share in shares.items()), file=out)
    lengths = [fmean(column) for column in zip(*(f.acceptance_lengths for f in files), strict=True)]
    shown = " ".join(f"{value:.3f}" for value in lengths)
    print(f"acceptance length of chains of 1 to {LONGEST}: {shown}", file=out)
    if costs:
        speed_ups = _speed_ups(lengths, costs)
        best, shown = _best(speed_ups), " ".join(f"{value:.3f}" for value in speed_ups)
        print(f"speed-up of chains of 1 to {LONGEST}: {shown}; best draft length: {best}", file=out)


def _speed_ups(acceptance_lengths: Sequence[float], costs: RoundCosts) -> list[float]:
    return [costs.speed_up(k, length) for k, length in enumerate(acceptance_lengths, start=1)]


def _best(speed_ups: Sequence[float]) -> int:
    """The draft length that is fastest; 0 when none is faster than decoding without drafts."""
    best = max(range(len(speed_ups)), key=speed_ups.__getitem__)
    return best + 1 if speed_ups[best] > 1 else 0
