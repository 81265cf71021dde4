"""Which target ids the drafter can propose."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from drafter_svc.train.data.documents import Document

# Candidates for how much the rank prior is worth, as a share of the counted tokens.
_PRIORS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


def count_tokens(documents: Iterable[Document], vocab_size: int) -> Tensor:
    """How often each id occurs in the documents, prompts included, fp64 ``[vocab]``."""
    ids = torch.tensor([i for document in documents for i in document.ids], dtype=torch.int64)
    return torch.bincount(ids, minlength=vocab_size).double()


def choose_draft_vocabulary(
    counts: Tensor, size: int, held_out: Iterable[Document], always: Sequence[int] = ()
) -> Tensor:
    """The ``size`` most likely ids, int64 ascending.

    Ids of a byte-pair vocabulary are in order of merging, so that a low id was frequent in the
    tokenizer's much larger text: a prior of 1/id ranks the ids that the counted text hardly has.
    Its weight is the one that covers most of ``held_out``. ``always`` (end tokens) are kept in
    any case.
    """
    ranks = torch.arange(1, len(counts) + 1, dtype=torch.float64)
    prior = counts.sum() * (1 / ranks) / (1 / ranks).sum()
    unseen = count_tokens(held_out, len(counts))
    best, covered = torch.arange(0), -1.0
    for weight in _PRIORS:
        score = counts + weight * prior
        score[list(always)] = torch.inf
        ids = score.topk(size).indices.sort().values
        if float(unseen[ids].sum()) > covered:
            best, covered = ids, float(unseen[ids].sum())
    return best


def coverage(documents: Iterable[Document], draft_ids: Tensor) -> float:
    """Share of the answer tokens that are in the draft vocabulary."""
    draftable = set(draft_ids.tolist())
    hits = total = 0
    for document in documents:
        written = [i for i, own in zip(document.ids, document.answer, strict=True) if own]
        hits += sum(token in draftable for token in written)
        total += len(written)
    return hits / max(1, total)
