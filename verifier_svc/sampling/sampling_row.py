"""What one row of the target's logits is drawn with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from verifier_svc.request.sequence import Sequence
from verifier_svc.request.types import Sampling


class SamplingRow(NamedTuple):
    """How to draw the token at absolute index `position`, for choice number `choice` of a request.

    `prompt` are the tokens of the prompt, for the repetition penalty; `output_counts` says how
    often each token is in the output so far, drafts in view included; `banned` tokens must not be
    drawn yet.
    """

    sampling: Sampling
    position: int
    choice: int = 0
    prompt: Collection[int] = ()
    output_counts: Mapping[int, int] = MappingProxyType({})
    banned: Collection[int] = ()


def rows_of(sequence: Sequence) -> Iterator[SamplingRow]:
    """The rows of a sequence: after its committed tokens, and after each token of its draft."""
    sampling, draft, choice = sequence.sampling, sequence.draft, sequence.generation.choice_index
    positions = range(len(sequence.tokens), len(sequence.tokens) + 1 + len(draft))
    if sampling.plain_scores:
        yield from [SamplingRow(sampling, position, choice) for position in positions]
        return
    prompt, counts = sequence.tokens[: sequence.output_start], sequence.output_counts
    for j, position in enumerate(positions):
        if j:
            counts = Counter(counts)
            counts[draft[j - 1]] += 1
        early = position - sequence.output_start < sampling.min_tokens
        banned = sequence.end_tokens if early else ()
        yield SamplingRow(sampling, position, choice, prompt, counts, banned)
