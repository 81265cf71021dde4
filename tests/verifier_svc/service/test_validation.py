"""Requests: defaults, and every limit."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from specwire.errors import InvalidRequest
from specwire.v1 import verifier_pb2 as pb
from verifier_svc.request.types import GenerationRequest, Sampling
from verifier_svc.service import validation

VOCAB, CONTEXT, DRAFT = 97, 64, 8


def request(**sampling: object) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        request_id="r",
        tokens=[3, 4, 5],
        output_start=3,
        sampling=pb.Sampling(**sampling),  # type: ignore[arg-type]
    )


def decode(message: pb.GenerateRequest) -> GenerationRequest:
    return validation.decode_request(
        message, vocab_size=VOCAB, max_model_len=CONTEXT, max_draft_tokens=DRAFT
    )


def refusal(message: pb.GenerateRequest) -> str:
    with pytest.raises(InvalidRequest) as error:
        decode(message)
    return str(error.value)


def test_absent_fields_take_the_documented_defaults() -> None:
    message = pb.GenerateRequest(tokens=[3, 4, 5], output_start=3)
    assert decode(message) == GenerationRequest(
        request_id="",
        tokens=(3, 4, 5),
        output_start=3,
        sampling=Sampling(max_tokens=CONTEXT - 3),
        max_draft_tokens=DRAFT,
        choice_index=0,
    )
    assert Sampling() == Sampling(
        temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=0, repetition_penalty=1.0,
        presence_penalty=0.0, frequency_penalty=0.0, min_tokens=0, top_logprobs=None,
    )  # fmt: skip


def test_every_field_is_taken() -> None:
    message = request(
        temperature=0.5, top_p=0.75, top_k=40, min_p=0.25, seed=2**64 - 1, repetition_penalty=1.5,
        presence_penalty=-2, frequency_penalty=2, logit_bias={3: -100.0, 96: 100.0},
        stop_token_ids=[7, 8, 7], min_tokens=2, max_tokens=9, ignore_eos=True, top_logprobs=20,
    )  # fmt: skip
    message.choice_index = 3
    message.tokens.append(9)  # one token of output is there already
    decoded = decode(message)
    assert decoded.sampling == Sampling(
        temperature=0.5, top_p=0.75, top_k=40, min_p=0.25, seed=2**64 - 1, repetition_penalty=1.5,
        presence_penalty=-2, frequency_penalty=2, logit_bias={3: -100.0, 96: 100.0},
        stop_token_ids=frozenset({7, 8}), min_tokens=2, max_tokens=9, ignore_eos=True,
        top_logprobs=20,
    )  # fmt: skip
    assert (decoded.request_id, decoded.output_start, decoded.choice_index) == ("r", 3, 3)


def test_explicit_zeros_are_no_defaults() -> None:
    sampling = decode(request(temperature=0.0, top_logprobs=0)).sampling
    assert sampling.temperature == 0
    assert sampling.top_logprobs == 0


@pytest.mark.parametrize(
    ("speculation", "cap"),
    [
        (pb.Speculation(), DRAFT),
        (pb.Speculation(disabled=True), 0),
        (pb.Speculation(disabled=True, max_draft_tokens=4), 0),
        (pb.Speculation(max_draft_tokens=0), 0),
        (pb.Speculation(max_draft_tokens=3), 3),
        (pb.Speculation(max_draft_tokens=1000), DRAFT),
    ],
)
def test_speculation_is_capped(speculation: pb.Speculation, cap: int) -> None:
    message = request()
    message.speculation.CopyFrom(speculation)
    assert decode(message).max_draft_tokens == cap


@pytest.mark.parametrize(
    ("field", "low", "high", "below", "above"),
    [
        ("temperature", 0.0, 2.0, -0.01, 2.01),
        ("top_p", 0.01, 1.0, 0.0, 1.01),
        ("min_p", 0.0, 1.0, -0.01, 1.01),
        ("repetition_penalty", 0.01, 100.0, 0.00999, 100.5),
        ("presence_penalty", -2.0, 2.0, -2.01, 2.01),
        ("frequency_penalty", -2.0, 2.0, -2.01, 2.01),
    ],
)
def test_numbers_stay_within_their_limits(
    field: str, low: float, high: float, below: float, above: float
) -> None:
    for allowed in (low, high):
        decode(request(**{field: allowed}))
    for refused in (below, above, math.nan, math.inf, -math.inf):
        assert refusal(request(**{field: refused})).startswith(f"{field}: must be ")


def test_a_temperature_that_logits_cannot_be_divided_by_is_greedy() -> None:
    assert decode(request(temperature=1e-5)).sampling.temperature == pytest.approx(1e-5)
    for tiny in (1e-45, 1e-30, 1e-8, 0.99e-5):
        assert decode(request(temperature=tiny)).sampling.temperature == 0


@pytest.mark.parametrize("bias", [-100.5, 100.5, math.nan, math.inf])
def test_biases_stay_within_their_limits(bias: float) -> None:
    assert refusal(request(logit_bias={5: bias})).startswith("logit_bias: must be ")


def test_refusals_name_field_limit_and_value() -> None:
    assert refusal(request(top_p=1.5)) == "top_p: must be above 0 and at most 1, 1.5 was given."
    assert refusal(request(max_tokens=0)) == "max_tokens: must be at least 1, 0 was given."


def change(**fields: object) -> pb.GenerateRequest:
    message = request(**fields.pop("sampling", {}))  # type: ignore[arg-type]
    for name, value in fields.items():
        message.ClearField(name)  # type: ignore[arg-type]
        if isinstance(value, int):
            setattr(message, name, value)
        else:
            getattr(message, name).extend(value)
    return message


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (change(tokens=[]), "tokens: at least one is needed."),
        (change(tokens=[0] * CONTEXT), "tokens: 64 leave no room in a context of 64."),
        (change(tokens=[3, VOCAB, 4]), "tokens: token ids must be below the vocabulary size 97."),
        (change(output_start=0), "output_start: must be from 1 to 3."),
        (change(output_start=4), "output_start: must be from 1 to 3."),
        (
            change(output_start=1, sampling={"max_tokens": 2}),
            "max_tokens: 2 output tokens exist already.",
        ),
        (change(sampling={"top_logprobs": 21}), "top_logprobs: must be at least 0 and at most 20"),
        (
            change(sampling={"max_tokens": 3, "min_tokens": 4}),
            "min_tokens: must be at least 0 and at most 3, 4 was given.",
        ),
        (change(sampling={"logit_bias": {VOCAB: 1.0}}), "logit_bias: token ids must be below"),
        (change(sampling={"stop_token_ids": [VOCAB]}), "stop_token_ids: token ids must be below"),
        (
            change(sampling={"stop_token_ids": [*range(65)]}),
            "stop_token_ids: at most 64.",
        ),
    ],
)
def test_what_cannot_be_served_is_refused(message: pb.GenerateRequest, sentence: str) -> None:
    assert refusal(message).startswith(sentence)


def test_many_biases_are_refused() -> None:
    message = request(logit_bias=dict.fromkeys(range(1025), 1.0))
    with pytest.raises(InvalidRequest, match=r"^logit_bias: at most 1024 tokens\.$"):
        validation.decode_request(message, vocab_size=5000, max_model_len=64, max_draft_tokens=8)


@pytest.mark.parametrize(
    "edge",
    [
        lambda: change(tokens=[VOCAB - 1] * (CONTEXT - 1), output_start=CONTEXT - 1),
        lambda: change(output_start=1, sampling={"max_tokens": 3}),
        lambda: change(sampling={"max_tokens": 2**32 - 1}),
        lambda: change(sampling={"max_tokens": 4, "min_tokens": 4}),
        lambda: change(sampling={"stop_token_ids": [*range(64)]}),
    ],
)
def test_the_edge_of_each_limit_is_served(edge: Callable[[], pb.GenerateRequest]) -> None:
    assert decode(edge()).tokens
