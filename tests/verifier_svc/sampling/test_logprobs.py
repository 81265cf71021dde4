"""Log-probabilities against those in float64."""

from __future__ import annotations

import pytest
import torch

from tests.support.sampling_fixtures import gaussian
from verifier_svc.sampling.logprobs import logprobs_of


@pytest.mark.parametrize("tops", [[0], [1], [5], [20], [0, 1, 20, 5]])
def test_logprobs_are_of_the_unprocessed_logits_best_first(tops: list[int]) -> None:
    tokens = [11, 0, 39, 7][: len(tops)]
    logits = torch.stack([gaussian(40, 2.0, 8 + i) for i in range(len(tops))])
    exact = logits.double() - torch.logsumexp(logits.double(), -1, keepdim=True)
    found = logprobs_of(logits, tokens, tops)
    for got, row, token, top in zip(found, exact, tokens, tops, strict=True):
        assert got.drawn == pytest.approx(row[token].item(), abs=1e-5)
        order = row.argsort(descending=True)[:top].tolist()
        assert [token for token, _ in got.top] == order
        assert [value for _, value in got.top] == pytest.approx(row[order].tolist(), abs=1e-5)
