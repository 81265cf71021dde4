"""Exact acceptance: draw every token as without a draft, and go on while the draft agrees.

Row j of a sequence's rows follows its committed tokens and the first j draft tokens, so it may
be drawn from exactly as long as those were what was drawn. The draws that count are the accepted
draft tokens and one more: the correction, or the bonus token after a draft accepted whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Items

import torch

from verifier_svc.drawing import draw
from verifier_svc.sequence import Sequence


def accept_greedy(draft: Items[int], best: Items[int]) -> list[int]:
    """The draws that count where each row's draw is its argmax, `best` [1 + draft length]."""
    matches = next((j for j, token in enumerate(draft) if token != best[j]), len(draft))
    return list(best[: matches + 1])


def accept_drawn(sequence: Sequence, logits: torch.Tensor) -> list[int]:
    """The draws that count for a sequence, from fp32 logits [1 + draft length, vocab]."""
    sampling, draft = sequence.sampling, sequence.draft
    plain = sampling.plain_scores
    prompt = () if plain else sequence.tokens[: sequence.output_start]
    counts = Counter[int]() if plain else Counter(sequence.output_counts)
    drawn: list[int] = []
    for j, scores in enumerate(logits):
        position = len(sequence) + j
        early = position - sequence.output_start < sampling.min_tokens
        drawn.append(
            draw(
                scores,
                sampling,
                position=position,
                choice=sequence.generation.choice_index,
                prompt=prompt,
                output_counts=counts,
                banned=sequence.end_tokens if early else (),
            )
        )
        if j == len(draft) or drawn[j] != draft[j]:
            break
        counts[drawn[j]] += 1
    return drawn
