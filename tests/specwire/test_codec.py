"""Messages of the drafter's protocol: round trips, and every refusal."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specwire import codec
from specwire.errors import DataLoss, InvalidRequest
from specwire.messages import (
    AppendEntries,
    CatchUpAck,
    Draft,
    DraftBudget,
    DraftCost,
    DrafterInfo,
    DraftSource,
    Proposals,
    ResendFrom,
    SequenceContext,
)
from specwire.v1 import drafter_pb2 as pb

VOCAB, LENGTH = 97, 512

uint32 = st.integers(0, 2**32 - 1)
uint64 = st.integers(0, 2**64 - 1)
tokens = st.integers(0, VOCAB - 1)
# What is fp32 already comes back equal.
real = st.floats(-100, 100, width=32)
positive = st.floats(0.0009765625, 100, width=32)

openings = st.builds(
    SequenceContext,
    first_token=tokens,
    output_start=uint32,
    seed=uint64,
    choice_index=uint32,
    temperature=st.floats(0, 100, width=32),
    repetition_penalty=positive,
    presence_penalty=real,
    frequency_penalty=real,
    logit_bias=st.dictionaries(tokens, real, max_size=4),
)


@st.composite
def extends(draw: st.DrawFn) -> AppendEntries:
    rows = tuple(draw(st.lists(tokens, max_size=8)))
    start = draw(st.integers(0, LENGTH - len(rows)))
    chain = draw(st.integers(0, 16))
    wish = DraftBudget(chain, draw(st.integers(0 if rows or chain else 1, 16)))
    needed = start == 0 and bool(rows)
    opening = draw(openings) if needed or draw(st.booleans()) else None
    return AppendEntries(draw(uint64), start, rows, wish, opening)


def sent(extend: AppendEntries) -> pb.Extend:
    return pb.Extend.FromString(codec.encode_extend(extend).SerializeToString())


@given(extends())
def test_extends_come_back(extend: AppendEntries) -> None:
    assert codec.decode_extend(sent(extend), VOCAB, LENGTH) == extend


def opening(**changes: object) -> AppendEntries:
    return AppendEntries(1, 0, (5,), DraftBudget(2), SequenceContext(3, 1, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("extend", "sentence"),
    [
        (
            AppendEntries(1, LENGTH - 1, (1, 2), DraftBudget(1)),
            "extend: entries end at 513, at most 512.",
        ),
        (
            AppendEntries(1, 2**32 - 1, (1,), DraftBudget(1)),
            "extend: entries end at 4294967296, at most 512.",
        ),
        (
            AppendEntries(1, 4, (1, VOCAB), DraftBudget(1)),
            "extend: tokens must be below the vocabulary size 97.",
        ),
        (
            AppendEntries(1, 0, (1,), DraftBudget(1)),
            "extend: an opening is required where start is 0.",
        ),
        (AppendEntries(1, 4, ()), "extend: it has neither entries nor a wish."),
    ],
)
def test_extends_that_cannot_be_applied_are_refused(extend: AppendEntries, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        codec.decode_extend(sent(extend), VOCAB, LENGTH)
    assert str(error.value) == sentence


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "field",
    ["temperature", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"],
)
def test_openings_with_numbers_that_are_none_are_refused(field: str, number: float) -> None:
    value = {4: number} if field == "logit_bias" else number
    with pytest.raises(InvalidRequest, match=r"^opening: numbers must be finite\.$"):
        codec.decode_extend(sent(opening(**{field: value})), VOCAB, LENGTH)


@pytest.mark.parametrize(
    "change",
    [{"temperature": -0.5}, {"repetition_penalty": 0.0}, {"repetition_penalty": -1.0}],
)
def test_openings_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest, match=r"^opening: temperature must be at least 0 and"):
        codec.decode_extend(sent(opening(**change)), VOCAB, LENGTH)


@pytest.mark.parametrize(
    "extend",
    [
        AppendEntries(1, 0, (5,), DraftBudget(2), SequenceContext(VOCAB, 1)),
        opening(logit_bias={VOCAB: 1.0}),
    ],
)
def test_openings_beyond_the_vocabulary_are_refused(extend: AppendEntries) -> None:
    with pytest.raises(InvalidRequest, match=r"^opening: tokens must be below .* size 97\.$"):
        codec.decode_extend(sent(extend), VOCAB, LENGTH)


@st.composite
def drafts(draw: st.DrawFn) -> Draft:
    guesses = draw(st.lists(st.tuples(tokens, st.floats(0, 1, width=32)), max_size=8))
    if draw(st.booleans()):
        found = tuple(t for t, _ in guesses)
        return Draft(draw(uint64), draw(uint32), found, source=DraftSource.LOOKUP)
    return Draft(
        draw(uint64), draw(uint32), tuple(t for t, _ in guesses), tuple(c for _, c in guesses)
    )


needs = st.builds(ResendFrom, uint64, uint32, uint32)
costs = st.builds(DraftCost, uint64, uint64)


@given(uint64, st.lists(drafts(), max_size=4), st.lists(needs, max_size=4), costs)
def test_proposals_come_back(
    number: int, some: list[Draft], wanting: list[ResendFrom], cost: DraftCost
) -> None:
    encoded = codec.encode_proposals(number, some, wanting, cost).SerializeToString()
    message = pb.DraftResponse.FromString(encoded).proposals
    assert message.number == number
    assert codec.decode_proposals(message, VOCAB) == Proposals(tuple(some), tuple(wanting), cost)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_draft_is_cut_before_a_token_outside_the_vocabulary(at: int) -> None:
    guesses = [1, 2, 3]
    guesses[at] = VOCAB
    draft = Draft(1, 4, tuple(guesses), (0.5, 0.25, 0.125))
    message = codec.encode_proposals(1, [draft], [], DraftCost()).proposals
    (back,) = codec.decode_proposals(message, VOCAB).drafts
    assert back == Draft(1, 4, tuple(guesses[:at]), (0.5, 0.25, 0.125)[:at])


def change_confidence(change: Callable[[pb.Draft], object]) -> pb.Proposals:
    message = codec.encode_proposals(1, [Draft(1, 4, (1, 2), (0.5, 0.5))], [], DraftCost())
    change(message.proposals.drafts[0])
    return message.proposals


def test_confidences_that_do_not_match_their_tokens_are_data_loss() -> None:
    message = change_confidence(lambda d: d.confidence.pop())
    with pytest.raises(DataLoss, match=r"^draft of 2 tokens: 1 confidences\.$"):
        codec.decode_proposals(message, VOCAB)


@pytest.mark.parametrize("value", [-0.5, 1.5, math.nan, math.inf])
def test_confidences_that_are_no_probabilities_are_data_loss(value: float) -> None:
    message = change_confidence(lambda d: d.confidence.__setitem__(1, value))
    with pytest.raises(DataLoss, match=r"^draft: confidence must be between 0 and 1, got \[0\.5, "):
        codec.decode_proposals(message, VOCAB)


def test_a_lookup_with_confidences_is_data_loss() -> None:
    message = change_confidence(lambda d: setattr(d, "source", pb.DRAFT_SOURCE_LOOKUP))
    with pytest.raises(DataLoss, match=r"^draft of 2 tokens: 2 confidences\.$"):
        codec.decode_proposals(message, VOCAB)


@pytest.mark.parametrize("number", [pb.DRAFT_SOURCE_UNSPECIFIED, 3])
def test_a_source_that_is_not_known_is_data_loss(number: int) -> None:
    message = change_confidence(lambda d: setattr(d, "source", number))
    with pytest.raises(DataLoss, match=rf"^draft: its source {number} is not known\.$"):
        codec.decode_proposals(message, VOCAB)


@given(st.builds(CatchUpAck, uint64, uint32, uint32, uint32, uint32))
def test_acks_come_back(ack: CatchUpAck) -> None:
    message = pb.BulkResponse.FromString(codec.encode_ack(ack).SerializeToString())
    assert codec.decode_ack(message.ack) == ack


def test_what_a_drafter_announces_is_read_field_by_field() -> None:
    message = pb.DescribeResponse(
        checkpoint_hash="c",
        target_fingerprint="t",
        aux_layer_ids=[2, 15, 27],
        target_hidden_size=576,
        hidden_size=512,
        vocab_size=49152,
        draft_vocab_size=8192,
        max_length=2048,
        max_draft_tokens=8,
        lookup_match=3,
        expected_acceptance=[0.5, 0.25],
        device="cuda:7",
        max_round_bytes=1 << 23,
    )
    assert codec.decode_welcome(message) == DrafterInfo(
        checkpoint_hash="c",
        target_fingerprint="t",
        aux_layer_ids=(2, 15, 27),
        target_hidden_size=576,
        vocab_size=49152,
        draft_vocab_size=8192,
        max_length=2048,
        max_draft_tokens=8,
        lookup_match=3,
        expected_acceptance=(0.5, 0.25),
        device="cuda:7",
        max_round_bytes=1 << 23,
    )
    message.ClearField("max_round_bytes")
    assert codec.decode_welcome(message).max_round_bytes == 4 << 20


@pytest.mark.parametrize("chance", [-0.5, 1.5, math.nan])
def test_an_announced_chance_that_is_none_is_data_loss(chance: float) -> None:
    message = pb.DescribeResponse(expected_acceptance=[0.5, chance])
    with pytest.raises(DataLoss, match=r"^expected_acceptance must be between 0 and 1, got "):
        codec.decode_welcome(message)
