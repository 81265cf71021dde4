"""Acceptance of one round's drafts: what counts, what is drawn for it, and what is waited for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.support.sampling_fixtures import as_accelerator, gaussian
from verifier_svc.request.sequence import Sequence
from verifier_svc.request.types import GenerationRequest, Sampling
from verifier_svc.sampling.sampler import sample
from verifier_svc.sampling.sampling_row import SamplingRow, rows_of
from verifier_svc.sampling.verification import Verification, verify

VOCAB = 50
SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 0.0, "top_logprobs": 3},
    {"top_k": 7, "frequency_penalty": 0.5, "repetition_penalty": 1.2, "top_logprobs": 0},
    {"temperature": 0.0},
    {"min_tokens": 5, "logit_bias": {1: 9.0}},
]


def sequence_of(seed: int, draft: tuple[int, ...] = (), **sampling: Any) -> Sequence:
    given = Sampling(seed=seed, max_tokens=20, **sampling)
    sequence = Sequence(seed, GenerationRequest("", (3, 8, 5, 8), 2, given), frozenset({1}), 100)
    sequence.draft = draft
    return sequence


def scores_of(sequences: list[Sequence]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`best` and `logits` of one round: a row's logits depend on sequence and position alone."""
    greedy, others = [torch.empty(0, VOCAB)], [torch.empty(0, VOCAB)]
    for sequence in sequences:
        rows = [gaussian(VOCAB, 1.5, 100 * sequence.id + j) for j in range(1 + len(sequence.draft))]
        (greedy if sequence.sampling.plain_greedy else others).append(torch.stack(rows))
    return torch.cat(greedy).argmax(-1), torch.cat(others) if len(others) > 1 else None


def round_of(sequences: list[Sequence]) -> list[Verification | None]:
    return verify(sequences, *scores_of(sequences))


def texts() -> list[list[int]]:
    """By sampling, what is drawn where each draft token is right, found token by token."""
    found: list[list[int]] = []
    for seed, sampling in enumerate(SAMPLINGS):
        text: list[int] = []
        for _ in range(6):
            (accepted,) = round_of([sequence_of(seed, tuple(text), **sampling)])
            assert accepted is not None
            assert accepted.tokens[: len(text)] == text
            text = accepted.tokens
        found.append(text)
    return found


@pytest.mark.parametrize("way", ["cpu", "accelerator"])
def test_drafts_are_accepted_up_to_the_first_wrong_token(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = texts()
    if way == "accelerator":
        as_accelerator(monkeypatch)
    for length in range(6):
        for right in range(length + 1):
            sequences = []
            for seed, sampling in enumerate(SAMPLINGS):
                draft = wanted[seed][:length]
                if right < length:
                    draft[right] = (draft[right] + 1) % VOCAB
                sequences.append(sequence_of(seed, tuple(draft), **sampling))
            for accepted, text in zip(round_of(sequences), wanted, strict=True):
                assert accepted is not None
                assert accepted.tokens == text[: right + 1]


@pytest.mark.parametrize("way", ["cpu", "accelerator"])
def test_log_probabilities_are_of_what_counts(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "accelerator":
        as_accelerator(monkeypatch)
    drafts = [tuple(text[:2]) for text in texts()]
    sequences = [sequence_of(i, drafts[i], **options) for i, options in enumerate(SAMPLINGS)]
    for sequence, accepted in zip(sequences, round_of(sequences), strict=True):
        assert accepted is not None
        if sequence.sampling.top_logprobs is None:
            assert accepted.logprobs == ()
            continue
        assert len(accepted.tokens) == len(accepted.logprobs) == 3
        for j, (token, got) in enumerate(zip(accepted.tokens, accepted.logprobs, strict=True)):
            exact = gaussian(VOCAB, 1.5, 100 * sequence.id + j).log_softmax(-1)
            assert got.drawn == pytest.approx(exact[token].item(), abs=1e-5)
            assert len(got.top) == sequence.sampling.top_logprobs


@pytest.mark.parametrize("way", ["cpu", "accelerator"])
def test_only_a_sequence_whose_own_logits_are_not_finite_is_refused(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "accelerator":
        as_accelerator(monkeypatch)
    right = texts()
    drafts = [tuple(text[:2]) for text in right]
    sequences = [sequence_of(i, drafts[i], **options) for i, options in enumerate(SAMPLINGS)]
    best, logits = scores_of(sequences)
    assert logits is not None
    best[1] = -1  # the second row of sequence 0
    logits[3 + 2, 9] = math.nan  # the last row of sequence 2
    logits[6 + 1] = math.nan  # the second of sequence 3
    accepted = verify(sequences, best, logits)
    assert [found is None for found in accepted] == [True, False, True, True, False, False, False]
    for found, text in zip(accepted, right, strict=True):
        assert found is None or found.tokens == text[:3]
    # Rows behind a wrong draft token do not count.
    sequences[2].draft = (drafts[2][0], drafts[2][1] ^ 1)
    assert verify(sequences, best, logits)[2] == Verification(right[2][:2])


def test_rows_count_the_draft_before_them() -> None:
    sequence = sequence_of(4, (8, 9, 8), frequency_penalty=1.0, min_tokens=4)
    rows = list(rows_of(sequence))
    assert [row.position for row in rows] == [4, 5, 6, 7]
    assert [row.prompt for row in rows] == [[3, 8]] * 4
    assert [row.output_counts for row in rows] == [
        {5: 1, 8: 1},
        {5: 1, 8: 2},
        {5: 1, 8: 2, 9: 1},
        {5: 1, 8: 3, 9: 1},
    ]
    assert [set(row.banned) for row in rows] == [{1}, {1}, set(), set()]


@pytest.mark.parametrize(("way", "batches"), [("cpu", [1, 1]), ("accelerator", [4])])
def test_rows_behind_a_wrong_draft_token_are_drawn_only_where_that_costs_no_time(
    way: str, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = SAMPLINGS[2]
    text = texts()[2]
    seen: list[int] = []

    def counted(logits: torch.Tensor, rows: list[SamplingRow]) -> torch.Tensor:
        seen.append(len(rows))
        return sample(logits, rows)

    monkeypatch.setattr("verifier_svc.sampling.verification.sample", counted)
    if way == "accelerator":
        as_accelerator(monkeypatch)
    draft = text[0], text[1] ^ 1, text[2]
    (accepted,) = round_of([sequence_of(2, draft, **sampling)])
    assert accepted == Verification(text[:2])
    assert seen == batches


@pytest.mark.parametrize(("logprobs", "waits"), [(None, 1), (3, 2)])
def test_a_round_waits_for_an_accelerator_once_and_once_more_for_log_probabilities(
    monkeypatch: pytest.MonkeyPatch, logprobs: int | None, waits: int
) -> None:
    """Tensors on torch's meta device have no values, so all but the counted reads are errors."""
    reads: list[torch.Size] = []

    def zeros(tensor: torch.Tensor) -> Any:
        reads.append(tensor.shape)
        return torch.zeros(tensor.shape, dtype=tensor.dtype).numpy().tolist()

    monkeypatch.setattr(torch.Tensor, "tolist", zeros, raising=False)
    sequences = [
        sequence_of(i, (0, 0, 7), **({"top_logprobs": logprobs} | options if i % 2 else options))
        for i, options in enumerate(SAMPLINGS)
        if "top_logprobs" not in options
    ]
    rows = [1 + len(sequence.draft) for sequence in sequences if sequence.sampling.plain_greedy]
    best = torch.empty(sum(rows), dtype=torch.int64, device="meta")
    logits = torch.empty(4 * len(sequences) - len(best), 9000, device="meta")
    for accepted in verify(sequences, best, logits):
        assert accepted is not None
        assert accepted.tokens == [0, 0, 0]
    assert len(reads) == waits
