"""Rounds as messages that are never larger than a drafter takes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speckernels.tensor_codec import unpack
from specwire import codec
from specwire.messages import AppendEntries, DraftBudget, SequenceContext
from specwire.v1 import drafter_pb2 as pb
from verifier_svc.speculation.round_messages import round_messages

WIDTH = 64


def extend(seq: int, tokens: int, biases: int = 0) -> AppendEntries:
    bias = {(1 << 31) + i: -1.5 for i in range(biases)}
    opening = SequenceContext(
        (1 << 32) - 1, (1 << 32) - 1, (1 << 64) - 1, (1 << 32) - 1, 1.5, 1.5, 1.5, 1.5, bias,
        (1 << 64) - 1, (1 << 32) - 1,
    )  # fmt: skip
    return AppendEntries(
        seq, (1 << 32) - 1, ((1 << 32) - 1,) * tokens, DraftBudget(64, 64), opening
    )


def rows(*counts: int) -> list[torch.Tensor]:
    numbers = iter(range(1, sum(counts) + 1))
    return [torch.tensor([[next(numbers)] * WIDTH for _ in range(n)]).float() for n in counts]


def sizes(requests: list[pb.DraftRequest]) -> list[int]:
    for number, request in enumerate(requests):
        request.round.number = (1 << 64) - 1 - number
    return [request.ByteSize() for request in requests]


def test_what_fits_is_one_message() -> None:
    extends, features = [extend(1, 2), extend(2, 3)], rows(2, 3)
    (request,) = round_messages(extends, features, (7, 8), 4000)
    assert [codec.decode_extend(e, 1 << 32, 1 << 33) for e in request.round.extends] == extends
    assert unpack(request.round.features, "features").equal(torch.cat(features))
    assert list(request.round.closes) == [7, 8]
    (only,) = round_messages([], [], (9,), 4000)
    assert only == pb.DraftRequest(round=pb.Round(closes=[9]))


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 40)), min_size=1, max_size=12),
    st.integers(4000, 9000),
    st.integers(0, 50),
)
def test_a_round_is_cut_between_sequences_and_loses_nothing(
    kinds: list[tuple[int, int]], most: int, closes: int
) -> None:
    counts = [count for count, _ in kinds]
    extends = [extend((1 << 64) - 1 - i, n, biases) for i, (n, biases) in enumerate(kinds)]
    features = rows(*counts)
    made = list(round_messages(extends, features, [(1 << 64) - 1] * closes, most))
    # One sequence always fits: 9 rows of 256 bytes, and what a message has beside.
    assert max(sizes(made)) <= most
    sent = [codec.decode_extend(e, 1 << 32, 1 << 33) for m in made for e in m.round.extends]
    assert sent == extends
    parts = [unpack(m.round.features, "features") for m in made]
    assert torch.cat(parts).equal(torch.cat(features))
    assert [len(part) for part in parts] == [
        sum(len(e.tokens) for e in m.round.extends) for m in made
    ]
    assert [len(m.round.closes) for m in made] == [closes] + [0] * (len(made) - 1)


@pytest.mark.parametrize(("sequences", "cuts"), [(64, 1), (85, 1), (88, 2), (200, 3)])
def test_an_8b_sends_no_more_than_64_mib_at_once(sequences: int, cuts: int) -> None:
    # Rows of 24 KiB that take no memory here.
    row = torch.zeros(1, dtype=torch.bfloat16).expand(32, 12288)

    made: list[int] = []

    def note(*values: torch.Tensor, into: object) -> None:
        made.append(sum(value.nbytes for value in values))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("verifier_svc.speculation.round_messages.pack", note)
        list(
            round_messages(
                [extend(i, 32) for i in range(sequences)], [row] * sequences, (), 64 << 20
            )
        )
    assert len(made) == cuts
    assert sum(made) == sequences * 32 * 12288 * 2
    assert max(made) < 64 << 20
