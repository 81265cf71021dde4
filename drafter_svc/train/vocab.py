"""Which target ids the drafter can propose."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from drafter_svc.train.data import Conversation


def count_tokens(conversations: Iterable[Conversation], vocab_size: int) -> Tensor:
    """How often each id occurs in the conversations, prompts included, fp64 ``[vocab]``."""
    counts = torch.zeros(vocab_size, dtype=torch.float64)
    for conversation in conversations:
        counts += torch.bincount(torch.tensor(conversation.ids), minlength=vocab_size)
    return counts


def choose_draft_vocabulary(counts: Tensor, size: int, always: Sequence[int] = ()) -> Tensor:
    """The ``size`` most likely ids, int64 ascending.

    Ids of a byte-pair vocabulary are in order of merging, so that a low id was frequent in the
    tokenizer's much larger text: a prior of 1/id, worth 5 % of the counted tokens, ranks the ids
    that the counted text hardly has. ``always`` (end tokens) are kept in any case.
    """
    ranks = torch.arange(1, len(counts) + 1, dtype=torch.float64)
    prior = (1 / ranks) / (1 / ranks).sum()
    score = counts + 0.05 * counts.sum() * prior
    score[list(always)] = torch.inf
    return score.topk(size).indices.sort().values


def coverage(conversations: Iterable[Conversation], draft_ids: Tensor) -> float:
    """Share of the answer tokens that are in the draft vocabulary."""
    draftable = set(draft_ids.tolist())
    hits = total = 0
    for conversation in conversations:
        written = [i for i, own in zip(conversation.ids, conversation.answer, strict=True) if own]
        hits += sum(token in draftable for token in written)
        total += len(written)
    return hits / max(1, total)
