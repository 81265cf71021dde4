"""Penalties, bias and masks against a reference that goes token by token."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specwire import limits
from tests.support.sampling_fixtures import draw_one, drawn, gaussian, reference_penalize
from verifier_svc.request.types import Sampling
from verifier_svc.sampling.penalties import penalize
from verifier_svc.sampling.sampling_row import SamplingRow

ids = st.integers(0, 19)


@st.composite
def rows(draw: st.DrawFn) -> SamplingRow:
    output = draw(st.lists(ids, max_size=12))
    sampling = Sampling(
        repetition_penalty=draw(st.sampled_from([1.0, 1.3, 0.5])),
        presence_penalty=draw(st.sampled_from([0.0, 0.7, -1.5])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.3, -0.4])),
        logit_bias=draw(st.dictionaries(ids, st.floats(-5, 5), max_size=4)),
    )
    return SamplingRow(
        sampling,
        position=9,
        prompt=draw(st.lists(ids, min_size=1, max_size=8)),
        output_counts={token: output.count(token) for token in output},
        banned=draw(st.sets(ids, max_size=5)),
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(rows(), min_size=1, max_size=4))
def test_penalties_bias_and_masks_follow_the_reference(batch: list[SamplingRow]) -> None:
    logits = torch.stack([gaussian(20, 2.0, 5 + i) for i in range(len(batch))])
    before = logits.clone()
    got = penalize(logits, batch)
    for scores, row, own in zip(got, batch, logits, strict=True):
        wanted = reference_penalize(own.tolist(), row)
        assert scores.tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    assert torch.equal(logits, before), "the target's logits are not changed"


def ends(allowed: limits.Range) -> st.SearchStrategy[float]:
    return st.sampled_from([allowed.low, allowed.high])


@settings(max_examples=100, deadline=None)
@given(
    sampling=st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, limits.LEAST_TEMPERATURE, 1.0, 2.0]),
        top_p=st.sampled_from([limits.LEAST_FP32, 0.9, 1.0]),
        top_k=st.sampled_from([0, 3]),
        min_p=ends(limits.MIN_P),
        repetition_penalty=ends(limits.REPETITION_PENALTY),
        presence_penalty=ends(limits.PRESENCE_PENALTY),
        frequency_penalty=ends(limits.FREQUENCY_PENALTY),
        logit_bias=st.dictionaries(ids, ends(limits.LOGIT_BIAS)),
    ),
    logits=st.lists(
        st.sampled_from([-limits.MAX_LOGIT, -1.0, 0.0, 1.0, limits.MAX_LOGIT]),
        min_size=20,
        max_size=20,
    ),
    often=st.integers(1, 2**20),
)
def test_whatever_is_asked_within_the_limits_finite_logits_are_drawn_from(
    sampling: Sampling, logits: list[float], often: int
) -> None:
    row = SamplingRow(
        sampling, position=9, prompt=range(10), output_counts=dict.fromkeys(range(20), often)
    )
    given = torch.tensor([logits])
    scores = penalize(given, [row]) / max(sampling.temperature, limits.LEAST_TEMPERATURE)
    assert torch.isfinite(scores).all()
    assert 0 <= drawn(given, [row])[0] < 20


def test_a_token_beyond_the_vocabulary_touches_no_other_row() -> None:
    row = SamplingRow(Sampling(logit_bias={20: 1.0}), position=0)
    with pytest.raises(IndexError):
        penalize(torch.zeros(2, 20), [row, row])


def test_a_banned_token_is_not_drawn_at_any_temperature() -> None:
    logits = torch.zeros(8)
    logits[3] = 50.0
    for temperature in (0.0, 1.0):
        sampling = Sampling(temperature=temperature, min_tokens=1)
        assert draw_one(logits, SamplingRow(sampling, position=0, banned={3})) != 3


def test_a_bias_beats_the_models_choice() -> None:
    logits = torch.zeros(8)
    logits[3] = 50.0
    sampling = Sampling(temperature=0, logit_bias={5: 100.0})
    assert draw_one(logits, SamplingRow(sampling, position=0)) == 5
