"""Truncation against a slow reference, on a CPU and as accelerators do it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.verifier_svc.drawing_parts import as_accelerator, gaussian, reference_truncate
from verifier_svc.generation import Sampling
from verifier_svc.truncation import truncate


@pytest.fixture(params=["cpu", "accelerator"], scope="module", autouse=True)
def accelerator(request: pytest.FixtureRequest) -> Iterator[bool]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        if request.param == "accelerator":
            as_accelerator(monkeypatch)
        yield request.param == "accelerator"


def ids_of(kept: torch.Tensor) -> list[int]:
    return [token for token, score in enumerate(kept.tolist()) if score > -math.inf]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(0, 2**31),
    st.integers(0, 70),
    st.sampled_from([1.0, 0.99, 0.7, 0.31, 0.013]),
    st.sampled_from([0.0, 0.013, 0.21, 0.99, 1.0]),
)
def test_truncation_keeps_what_the_reference_keeps(
    vocab: int, seed: int, top_k: int, top_p: float, min_p: float
) -> None:
    logits = gaussian(vocab, 2.0, seed)
    sampling = Sampling(top_k=top_k, top_p=top_p, min_p=min_p)
    wanted = reference_truncate(logits.double().numpy(), sampling)
    if not sampling.truncates(vocab):
        assert sorted(wanted) == list(range(vocab))
        return
    (kept,), undecided = truncate(logits[None], [sampling])
    assert ids_of(kept) == sorted(wanted)
    assert torch.equal(kept[wanted], logits[wanted])
    assert undecided.tolist() == [False]


LIMITS = [
    Sampling(top_k=1),
    Sampling(top_k=7),
    Sampling(top_k=40),
    Sampling(top_p=1e-6),
    Sampling(top_p=0.3),
    Sampling(top_p=0.9, temperature=0.6),
    Sampling(min_p=1.0),
    Sampling(min_p=0.2),
    Sampling(top_k=40, top_p=0.5),
    Sampling(top_k=1000, min_p=0.01),
    Sampling(top_k=5, top_p=0.8, min_p=0.02, temperature=1.7),
]


@pytest.mark.parametrize("coarse", [False, True])
def test_too_few_candidates_are_told_and_never_wrong(accelerator: bool, coarse: bool) -> None:
    undecided_rows = 0
    for seed in range(20):
        rows = torch.stack([gaussian(90, 2.0, 100 * seed + i) for i in range(len(LIMITS))])
        # Coarse logits tie, also at the last candidate.
        rows = rows.round() if coarse else rows
        for candidates in (1, 2, 8, 30, 89, 90):
            kept, undecided = truncate(rows, LIMITS, candidates)
            for i, sampling in enumerate(LIMITS):
                scaled = (rows[i] / sampling.temperature).double().numpy()
                wanted = sorted(reference_truncate(scaled, sampling))
                if undecided[i]:
                    assert accelerator
                    assert candidates < 90
                    undecided_rows += 1
                else:
                    assert ids_of(kept[i]) == wanted
                beyond = candidates < sampling.top_k < 90
                if not coarse and not beyond and len(wanted) < candidates:
                    assert not undecided[i], "the candidates are enough"
    assert (undecided_rows > 0) == accelerator


def test_truncation_ties_keep_the_lowest_ids() -> None:
    for vocab in (10, 5000):
        logits = torch.zeros(1, vocab)
        (kept,), undecided = truncate(logits, [Sampling(top_k=3)])
        if undecided:
            (kept,), undecided = truncate(logits, [Sampling(top_k=3)], vocab)
        assert not undecided
        assert ids_of(kept) == [0, 1, 2]


def test_the_most_likely_token_always_stays() -> None:
    logits = gaussian(50, 1.0, 1)
    (kept,), _ = truncate(logits[None], [Sampling(top_p=1e-6, min_p=1.0)])
    assert ids_of(kept) == [int(logits.argmax())]
