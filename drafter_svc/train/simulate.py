"""Greedy speculation replayed on a text that is already known."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from drafter_svc.eagle import EagleDrafter
from drafter_svc.train.attention import ChainAttention

_LOOP = 8


@torch.no_grad()
def draft_chains(
    drafter: EagleDrafter,
    embedding: nn.Embedding,
    draft_ids: Tensor,
    ids: Tensor,
    features: Tensor,
    *,
    columns: Tensor,
    length: int,
) -> Tensor:
    """What the drafter would propose after each of ``columns``, most likely token first.

    ``ids`` is int64 ``[T]``, ``features`` ``[T, captured * H]`` of the same tokens. Each chain
    reads its own proposals. Returns target ids, int64 ``[S, length]``: the proposal for token
    i + 2 of column i and those that follow.
    """
    current = torch.arange(len(ids) - 1)
    window = getattr(drafter.config, "sliding_window", None)
    attend = ChainAttention([len(current)], columns, window)
    state = drafter.fuse(features[:-1])
    tokens = ids[1:]
    proposals: list[Tensor] = []
    for step in range(length):
        hidden = drafter.layer(embedding(tokens), state, current + step, attend)
        if step == 0:
            hidden, current = hidden[columns], columns
        tokens = draft_ids[drafter.logits(hidden).argmax(-1)]
        proposals.append(tokens)
        state = drafter.recycle(hidden)
    return torch.stack(proposals, dim=-1)


@dataclass(slots=True)
class Rounds:
    """Accepted draft tokens of each verification; ``looped`` marks rounds in a repetition."""

    length: int
    accepted: list[int] = field(default_factory=list)
    looped: list[bool] = field(default_factory=list)

    @property
    def acceptance_length(self) -> float:
        """Mean tokens per verification, the bonus token included."""
        return 1 + sum(self.accepted) / max(1, len(self.accepted))

    @property
    def per_position(self) -> list[float]:
        """Share of rounds that accepted their 1st, 2nd, ... draft token."""
        rounds = max(1, len(self.accepted))
        return [sum(a > j for a in self.accepted) / rounds for j in range(self.length)]

    def without_loops(self) -> "Rounds":
        """The rounds whose next token does not continue a repeated 8-gram."""
        kept = [a for a, loop in zip(self.accepted, self.looped, strict=True) if not loop]
        return Rounds(self.length, kept, [False] * len(kept))


def walk(
    rounds: Rounds, ids: Sequence[int], prompt: int, proposals: Sequence[Sequence[int]]
) -> None:
    """Add the rounds that serving would take through ``ids`` to ``rounds``.

    ``proposals[j]`` are those of column ``prompt - 1 + j``. The first answer token comes from the
    prompt's own forward. Rounds that would run over the end of the text are left out.
    """
    loops = _continues_a_loop(ids)
    base = prompt - 1
    while base + 2 + rounds.length <= len(ids):
        following = ids[base + 2 : base + 2 + rounds.length]
        drafted = proposals[base - prompt + 1]
        accepted = 0
        while accepted < rounds.length and drafted[accepted] == following[accepted]:
            accepted += 1
        rounds.accepted.append(accepted)
        rounds.looped.append(loops[base + 2])
        base += accepted + 1


def _continues_a_loop(ids: Sequence[int]) -> list[bool]:
    seen: set[tuple[int, ...]] = set()
    loops = []
    for end in range(1, len(ids) + 1):
        gram = tuple(ids[max(0, end - _LOOP) : end])
        loops.append(gram in seen)
        seen.add(gram)
    return loops
