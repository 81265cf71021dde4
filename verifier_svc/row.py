"""What one row of the target's logits is drawn with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from verifier_svc.generation import Sampling
from verifier_svc.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Row:
    """How to draw the token at absolute index `position`, for choice number `choice` of a request.

    `prompt` are the tokens of the prompt, for the repetition penalty; `output_counts` says how
    often each token is in the output so far, drafts in view included; `banned` tokens must not be
    drawn yet.
    """

    sampling: Sampling
    position: int
    choice: int = 0
    prompt: Collection[int] = ()
    output_counts: Mapping[int, int] = field(default_factory=dict)
    banned: Collection[int] = ()


def rows_of(sequence: Sequence) -> Iterator[Row]:
    """The rows of a sequence: after its committed tokens, and after each token of its draft."""
    sampling, draft = sequence.sampling, sequence.draft
    plain = sampling.plain_scores
    prompt = () if plain else sequence.tokens[: sequence.output_start]
    counts: Mapping[int, int] = {} if plain else sequence.output_counts
    for j in range(1 + len(draft)):
        if j and not plain:
            counts = Counter(counts)
            counts[draft[j - 1]] += 1
        position = len(sequence) + j
        early = position - sequence.output_start < sampling.min_tokens
        banned = sequence.end_tokens if early else ()
        choice = sequence.generation.choice_index
        yield Row(sampling, position, choice, prompt, counts, banned)
