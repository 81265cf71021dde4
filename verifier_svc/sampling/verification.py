"""Exact acceptance: draw every token as without a draft, and go on while the draft agrees.

Row j of a sequence's rows follows its committed tokens and the first j draft tokens, so it may
be drawn from exactly as long as those were what was drawn. The draws that count are the accepted
draft tokens and one more: the correction, or the bonus token after a draft accepted whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Items
from itertools import islice
from typing import NamedTuple

import torch

from speckernels import to_device_async
from speckernels.device import is_async
from verifier_svc.request.sequence import Sequence
from verifier_svc.request.types import Logprobs
from verifier_svc.sampling.logprobs import logprobs_of
from verifier_svc.sampling.sampler import NOT_FINITE, resample_undecided, sample, sample_runs
from verifier_svc.sampling.sampling_row import rows_of


class Verification(NamedTuple):
    """The draws of a round that count for a sequence, with log-probabilities if it wants them."""

    tokens: list[int]
    logprobs: tuple[Logprobs, ...] = ()


#: What `verify` is, for those who are given it.
Accept = Callable[[Items[Sequence], torch.Tensor, torch.Tensor | None], Items[Verification | None]]


def verify(
    sequences: Items[Sequence], best: torch.Tensor, logits: torch.Tensor | None
) -> list[Verification | None]:
    """Accept the drafts of one round; None for a sequence whose logits are not finite.

    Each sequence has a row for its last token and one for each token of its draft, in order:
    those of plain greedy ones are in `best`, their argmax int64 [rows] as `kernels.draw` has it,
    and those of the others in fp32 `logits` [rows, vocab], None where there are none.

    An accelerator is waited for once, and once more for log-probabilities and for rows that it
    leaves undecided.
    """
    draws = _draw_at_once if is_async(best.device) else _draw_in_turn
    drawn = [
        _agreeing(sequence.draft, tokens)
        for sequence, tokens in zip(sequences, draws(sequences, best, logits), strict=True)
    ]
    logprobs = [()] * len(drawn) if logits is None else _logprobs(sequences, drawn, logits)
    return [
        None if tokens[-1] == NOT_FINITE else Verification(tokens, found)
        for tokens, found in zip(drawn, logprobs, strict=True)
    ]


def _agreeing(draft: Items[int], drawn: Iterable[int]) -> list[int]:
    """What is drawn up to the first token that differs from the draft; no more is asked for."""
    tokens: list[int] = []
    guesses = iter(draft)
    for token in drawn:
        tokens.append(token)
        if token != next(guesses, None):
            break
    return tokens


def _draw_at_once(
    sequences: Items[Sequence], best: torch.Tensor, logits: torch.Tensor | None
) -> Iterator[list[int]]:
    """Tokens of all rows of each sequence: what costs time is to wait, not to draw."""
    sampled = [s for s in sequences if not s.greedy]
    rows = [row for sequence in sampled for row in rows_of(sequence)]
    tokens = best.tolist() if logits is None else torch.cat([best, sample(logits, rows)]).tolist()
    greedy, drawn = iter(tokens[: len(best)]), tokens[len(best) :]
    others = iter(drawn if logits is None else resample_undecided(drawn, logits, rows))
    for sequence in sequences:
        own = greedy if sequence.greedy else others
        yield list(islice(own, 1 + len(sequence.draft)))


def _draw_in_turn(
    sequences: Items[Sequence], best: torch.Tensor, logits: torch.Tensor | None
) -> Iterator[Iterable[int]]:
    """Tokens of each sequence, drawn as far as they are needed: others would cost time."""
    greedy, start = iter(best.tolist()), 0
    raced = _race(sequences, logits)
    for i, sequence in enumerate(sequences):
        count = 1 + len(sequence.draft)
        if sequence.greedy:
            yield list(islice(greedy, count))
            continue
        assert logits is not None
        rows = logits[start : start + count]
        start += count
        yield raced[i] if i in raced else _draw_rows(sequence, rows)


def _race(sequences: Items[Sequence], logits: torch.Tensor | None) -> dict[int, list[int]]:
    """Tokens of those sequences that are a `plain_race`, by their numbers, drawn in one batch."""
    own: dict[int, slice] = {}  # rows of the logits
    start = 0
    for i, sequence in enumerate(sequences):
        if logits is None or sequence.greedy:
            continue
        stop = start + 1 + len(sequence.draft)
        if sequence.sampling.plain_race(logits.shape[-1]):
            own[i] = slice(start, stop)
        start = stop
    if logits is None or not own:
        return {}
    if sum(part.stop - part.start for part in own.values()) < len(logits):
        logits = torch.cat([logits[part] for part in own.values()])
    rows = [row for i in own for row in rows_of(sequences[i])]
    expected = [token for i in own for token in (*sequences[i].draft, NOT_FINITE)]
    tokens = iter(sample_runs(logits, rows, expected))
    return {i: list(islice(tokens, part.stop - part.start)) for i, part in own.items()}


def _draw_rows(sequence: Sequence, logits: torch.Tensor) -> Iterator[int]:
    for row, scores in zip(rows_of(sequence), logits[:, None], strict=True):
        yield from resample_undecided(sample(scores, [row]).tolist(), scores, [row])


def _logprobs(
    sequences: Items[Sequence], drawn: Items[Items[int]], logits: torch.Tensor
) -> list[tuple[Logprobs, ...]]:
    """Of what each sequence drew; empty where it does not ask for them."""
    rows: list[int] = []
    tokens: list[int] = []
    tops: list[int] = []
    counts: list[int] = []
    row = 0
    for sequence, own in zip(sequences, drawn, strict=True):
        top = sequence.sampling.top_logprobs
        counts.append(0 if top is None or own[-1] == NOT_FINITE else len(own))
        rows += range(row, row + counts[-1])
        tokens += own[: counts[-1]]
        tops += [top or 0] * counts[-1]
        row += 0 if sequence.greedy else 1 + len(sequence.draft)
    found = iter(
        logprobs_of(logits[to_device_async(rows, logits.device)], tokens, tops) if rows else ()
    )
    return [tuple(islice(found, count)) for count in counts]
