"""Greedy text with and without drafts, by the target's own rounds, and what differs explained."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from loadtests.gpu_check.findings import Findings
from loadtests.gpu_check.rounds import Rounds, started
from verifier_svc.model.target import Target
from verifier_svc.request.sequence import Sequence
from verifier_svc.sampling.verification import verify
from verifier_svc.scheduling.scheduler import ScheduledRows

_LENGTH = 3
# Of the drafts: every so manieth ends in a token that is wrong.
_WRONG = 4
# Logits of fp32 this near may change places; of others, those nearer than so many times what
# logits move by in the root mean square, when the same row is run in another batch.
_TIE, _SURE = 1e-4, 8.0
# What other shapes of batches may move logits by, as a share of their spread.
_MOVED = {torch.float32: 1e-4, torch.bfloat16: 0.06, torch.float16: 0.01}


@dataclass(frozen=True, slots=True)
class Compared:
    """Of `tokens`, those that drafts changed: `near` ones were ties up to rounding, `far` not.

    `moved` is the root mean square of what logits moved by, as a share of their spread.
    `accepted` is the share of right draft tokens that were accepted.
    """

    tokens: int
    near: int
    far: int
    moved: float
    accepted: float
    dtype: torch.dtype

    def judge(self, findings: Findings, name: str) -> None:
        """Put it beside its bars."""
        findings.at_most(f"{name}: tokens that drafts changed", self.far, 0)
        if self.dtype == torch.float32:
            findings.at_most(f"{name}: near-ties of {self.tokens}", self.near, 1)
        else:
            findings.note(f"{name}: near-ties of {self.tokens}", self.near)
        findings.at_most(f"{name}: logits move by, of their spread", self.moved, _MOVED[self.dtype])
        findings.at_least(f"{name}: right draft tokens accepted", self.accepted, 0.5)


def compare(target: Target, prompt: tuple[int, ...], tokens: int) -> Compared:
    """Write `tokens` tokens without drafts, then the same text with them.

    Where these draw another token, the text goes on as without: every token is tried, and every
    difference judged by itself.
    """
    rounds = Rounds(target, 2, len(prompt) + tokens + _LENGTH)
    plain, drafted = (
        started(number, prompt, len(prompt) + tokens) for number in range(len(rounds.sequences))
    )
    for sequence, owner in zip((plain, drafted), rounds.sequences, strict=True):
        sequence.extent = owner.extent
    first = _prefill(target, rounds, plain)
    scores = [first]
    plain.commit([int(first.argmax())], 0)
    while plain.finish is None:
        logits = _round(target, rounds, plain)
        scores.append(logits[0])
        plain.commit([int(logits[0].argmax())], 0)
    return _drafted(target, rounds, plain, drafted, scores)


def _drafted(
    target: Target,
    rounds: Rounds,
    plain: Sequence,
    sequence: Sequence,
    scores: list[torch.Tensor],
) -> Compared:
    """Write what `plain` is, with drafts of it; `scores` are the logits of each of its tokens."""
    start = len(sequence)
    text = plain.tokens
    _prefill(target, rounds, sequence)
    sequence.commit([text[start]], 0)
    moves: list[torch.Tensor] = []
    gaps: list[float] = []
    proposed = accepted = unexplained = number = 0
    while sequence.finish is None:
        at = len(sequence)
        sequence.draft = _draft(text[at : at + min(_LENGTH, sequence.room_for_draft)], number)
        right = _right(sequence.draft, text[at:])
        logits = _round(target, rounds, sequence)
        (drawn,) = verify([sequence], logits.argmax(-1), None)
        kept = drawn.tokens if drawn is not None else []
        logits = logits[: right + 1]
        wanted = torch.stack(scores[at - start : at - start + right + 1])
        moves.append(logits - wanted)
        best = wanted.topk(2).values
        changed = logits.argmax(-1) != wanted.argmax(-1)
        gaps += (best[:, 0] - best[:, 1])[changed].tolist()
        proposed, accepted = proposed + right, accepted + min(right, len(kept) - 1)
        # What is drawn otherwise without a logit that says so is no rounding.
        coming = text[at : at + right + 1]
        unexplained += kept != coming and not changed.any()
        sequence.commit(coming, right)
        number += 1
    moved = torch.cat(moves)
    rms = float(moved.square().mean().sqrt())
    limit = _TIE if target.dtype == torch.float32 else _SURE * rms
    far = sum(gap >= limit for gap in gaps)
    near = len(gaps) - far
    spread = float(torch.stack(scores).std())
    return Compared(
        tokens=len(text) - start,
        near=near,
        far=far + unexplained,
        moved=rms / spread,
        accepted=accepted / max(1, proposed),
        dtype=target.dtype,
    )


def _draft(coming: list[int], number: int) -> tuple[int, ...]:
    """What comes, the last token wrong at times."""
    if coming and number % _WRONG == 0:
        coming = [*coming[:-1], coming[-1] ^ 1]
    return tuple(coming)


def _right(draft: tuple[int, ...], coming: list[int]) -> int:
    """How many tokens of a draft are what comes."""
    pairs = zip(draft, coming, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(draft))


def _prefill(target: Target, rounds: Rounds, sequence: Sequence) -> torch.Tensor:
    """Run a prompt; returns the logits after it [vocab]."""
    work = ScheduledRows(sequence, 0, tuple(sequence.tokens), 1, prompt=True)
    return target.head.logits(target.run([work], rounds.cache))[0].clone()


def _round(target: Target, rounds: Rounds, sequence: Sequence) -> torch.Tensor:
    """Logits after the last token and after each of the draft [1 + draft, vocab]."""
    tokens = sequence.tokens[-1], *sequence.draft
    work = ScheduledRows(sequence, len(sequence) - 1, tokens, len(tokens))
    return target.head.logits(target.run([work], rounds.cache)).clone()
