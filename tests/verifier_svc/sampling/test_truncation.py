"""Truncation against a slow reference, on a CPU and as accelerators do it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.sampling_fixtures import as_accelerator, gaussian, reference_truncate
from verifier_svc.request.types import Sampling
from verifier_svc.sampling.truncation import CANDIDATES, truncate


@pytest.fixture(params=["cpu", "accelerator"], scope="module", autouse=True)
def accelerator(request: pytest.FixtureRequest) -> Iterator[bool]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        if request.param == "accelerator":
            as_accelerator(monkeypatch)
        yield request.param == "accelerator"


@dataclass
class Row:
    """What is kept of a row: logits by token, best first. None where more candidates are needed."""

    kept: dict[int, float] | None

    @property
    def ids(self) -> list[int]:
        assert self.kept is not None
        return sorted(self.kept)


def rows_of(
    accelerator: bool,
    logits: torch.Tensor,
    samplings: Sequence[Sampling],
    candidates: int = CANDIDATES,
) -> list[Row]:
    """All rows at once as accelerators take them, one by one on a CPU."""
    batches: list[tuple[torch.Tensor, Sequence[Sampling]]] = [(logits, samplings)]
    if not accelerator:
        pairs = zip(logits[:, None], samplings, strict=True)
        batches = [(row, [sampling]) for row, sampling in pairs]
    rows: list[Row] = []
    for batch, asked in batches:
        kept = truncate(batch, asked, candidates)
        undecided = torch.zeros(len(batch)) if kept.undecided is None else kept.undecided
        for ids, values, open_ in zip(kept.ids, kept.logits, undecided.tolist(), strict=True):
            stays = values > -math.inf
            found = dict(zip(ids[stays].tolist(), values[stays].tolist(), strict=True))
            assert list(found.values()) == sorted(found.values(), reverse=True)
            rows.append(Row(None if open_ else found))
    return rows


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(0, 2**31),
    st.integers(0, 70),
    st.sampled_from([1.0, 0.99, 0.7, 0.31, 0.013]),
    st.sampled_from([0.0, 0.013, 0.21, 0.99, 1.0]),
)
def test_truncation_keeps_what_the_reference_keeps(
    accelerator: bool, vocab: int, seed: int, top_k: int, top_p: float, min_p: float
) -> None:
    logits = gaussian(vocab, 2.0, seed)
    sampling = Sampling(top_k=top_k, top_p=top_p, min_p=min_p)
    wanted = reference_truncate(logits.double().numpy(), sampling)
    if not sampling.truncates(vocab):
        assert sorted(wanted) == list(range(vocab))
        return
    (row,) = rows_of(accelerator, logits[None], [sampling])
    assert row.ids == sorted(wanted)
    assert row.kept == dict(zip(wanted, logits[wanted].tolist(), strict=True))


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
            for i, row in enumerate(rows_of(accelerator, rows, LIMITS, candidates)):
                sampling = LIMITS[i]
                scaled = (rows[i] / sampling.temperature).double().numpy()
                wanted = sorted(reference_truncate(scaled, sampling))
                if row.kept is None:
                    assert accelerator
                    assert candidates < 90
                    undecided_rows += 1
                else:
                    assert row.ids == wanted
                beyond = candidates < sampling.top_k < 90
                if not coarse and not beyond and len(wanted) < candidates:
                    assert row.kept is not None, "the candidates are enough"
    assert (undecided_rows > 0) == accelerator


def test_truncation_ties_keep_the_lowest_ids(accelerator: bool) -> None:
    for vocab in (10, 5000):
        logits = torch.zeros(1, vocab)
        (row,) = rows_of(accelerator, logits, [Sampling(top_k=3)])
        if row.kept is None:
            (row,) = rows_of(accelerator, logits, [Sampling(top_k=3)], vocab)
        assert row.ids == [0, 1, 2]


def test_the_most_likely_token_always_stays(accelerator: bool) -> None:
    logits = gaussian(50, 1.0, 1)
    (row,) = rows_of(accelerator, logits[None], [Sampling(top_p=1e-6, min_p=1.0)])
    assert row.ids == [int(logits.argmax())]
