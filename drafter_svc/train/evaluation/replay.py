"""Greedy speculation replayed on a text that is already known."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress, takewhile

import torch
from torch import Tensor, nn

from drafter_svc.inference.ngram_lookup import SuffixIndex
from drafter_svc.model.eagle import EagleDrafter
from drafter_svc.train.objective.ttt_attention import ChainAttention

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

    ``embedding`` is the target's. ``ids`` is int64 ``[T]``, ``features`` ``[T, captured * H]`` of
    the same tokens. Each chain reads its own proposals. Returns target ids, int64
    ``[S, length]``: the proposal for token i + 2 of column i and those that follow.
    """
    current = torch.arange(len(ids) - 1)
    config = drafter.config
    attend = ChainAttention(
        [len(current)], columns, config.sliding_window, config.num_hidden_layers
    )
    embedding = drafter.embeddings(embedding)
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


def lookups(
    ids: Sequence[int], prompt: int, *, shortest: int, length: int
) -> list[tuple[int, ...]]:
    """What a lookup would propose after each answer position; () where nothing repeats.

    The columns are ``prompt - 1`` to ``len(ids) - 2``: that of i knows the tokens up to i + 1.
    """
    index = SuffixIndex(shortest)
    index.extend(ids[:prompt])
    found = []
    for token in ids[prompt:]:
        index.extend([token])
        found.append(index.propose(length))
    return found


@dataclass(slots=True)
class Rounds:
    """Accepted draft tokens of each verification.

    ``looped`` marks rounds in a repetition, ``looked_up`` those whose draft was by lookup.
    """

    length: int
    accepted: list[int] = field(default_factory=list)
    looped: list[bool] = field(default_factory=list)
    looked_up: list[bool] = field(default_factory=list)

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
        return self._only([not loop for loop in self.looped])

    def by_lookup(self, wanted: bool) -> "Rounds":
        """The rounds whose draft was by lookup, or the others."""
        return self._only([looked_up == wanted for looked_up in self.looked_up])

    def _only(self, kept: Sequence[bool]) -> "Rounds":
        return Rounds(
            self.length,
            list(compress(self.accepted, kept)),
            list(compress(self.looped, kept)),
            list(compress(self.looked_up, kept)),
        )


def walk(
    rounds: Rounds,
    ids: Sequence[int],
    prompt: int,
    chains: Sequence[Sequence[int]],
    found: Sequence[Sequence[int]] = (),
) -> None:
    """Add the rounds that serving would take through ``ids`` to ``rounds``.

    ``chains[j]`` is the chain of column ``prompt - 1 + j``, and ``found[j]`` the lookup that takes
    its place where it is not empty. The first answer token comes from the prompt's own forward.
    Rounds that would run over the end of the text are left out.
    """
    loops = _continues_a_loop(ids)
    base = prompt - 1
    while base + 2 + rounds.length <= len(ids):
        following = ids[base + 2 : base + 2 + rounds.length]
        column = base - prompt + 1
        by_lookup = found[column] if found else ()
        drafted = by_lookup or chains[column]
        pairs = zip(drafted, following, strict=False)
        accepted = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        rounds.accepted.append(accepted)
        rounds.looped.append(loops[base + 2])
        rounds.looked_up.append(bool(by_lookup))
        base += accepted + 1


def _continues_a_loop(ids: Sequence[int]) -> list[bool]:
    seen: set[tuple[int, ...]] = set()
    loops = []
    for end in range(1, len(ids) + 1):
        gram = tuple(ids[max(0, end - _LOOP) : end])
        loops.append(gram in seen)
        seen.add(gram)
    return loops
