"""Frames in, pieces out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.generation.output import ChoiceOutput
from gateway.text.detokenizer import Detokenizer
from gateway.text.stop_strings import StopFinder
from specwire.errors import DataLoss
from specwire.tensor import pack_floats
from specwire.v1 import verifier_pb2 as pb
from specwire.v1.drafter_pb2 import DRAFT_SOURCE_LOOKUP

PROMPT = [1, 2, 3]
END = 9


def generation(stops: Sequence[str] = (), **limits: Any) -> ChoiceOutput:
    """Token n is the letter n of the alphabet."""
    values = {"max_tokens": 100, "min_tokens": 0, "end_ids": {END}, **limits}
    return ChoiceOutput(
        PROMPT,
        detokenizer=Detokenizer(lambda ids: "".join(chr(97 + i) for i in ids)),
        stops=StopFinder(stops),
        **values,
    )


def tokens(number: int, start: int, *ids: int, drafted: int = 0) -> pb.GenerateResponse:
    accepted = len(ids) - 1 if drafted else 0
    frame = pb.Tokens(start=start, ids=ids, drafted=drafted, accepted=accepted)
    return pb.GenerateResponse(number=number, tokens=frame)


def finish(number: int, reason: pb.FinishReason.ValueType, **usage: Any) -> pb.GenerateResponse:
    return pb.GenerateResponse(
        number=number, finish=pb.Finish(reason=reason, usage=pb.Usage(**usage))
    )


def test_frames_become_text_and_end() -> None:
    g = generation()
    assert g.receive(tokens(0, 3, 0)).text == "a"
    piece = g.receive(tokens(1, 4, 1, 2, END))
    assert (piece.text, piece.tokens, piece.finish_reason) == ("bc", (1, 2), None)
    last = g.receive(finish(2, pb.FINISH_REASON_STOP, accepted_draft_tokens=2, rounds=2))
    assert last.finish_reason == "stop"
    assert g.output == [0, 1, 2, END]
    assert (g.spent.accepted, g.spent.rounds) == (2, 2)


@pytest.mark.parametrize(
    "frame",
    [
        None,
        tokens(2, 4, 1),
        tokens(0, 4, 1),
        tokens(1, 5, 1),
        pb.GenerateResponse(number=1),
    ],
)
def test_what_is_missing_is_noticed(frame: pb.GenerateResponse | None) -> None:
    g = generation()
    g.receive(tokens(0, 3, 0))
    with pytest.raises(DataLoss):
        g.receive(frame)
    assert g.output == [0]


def test_logprobs_must_fit() -> None:
    g = generation()
    frame = tokens(0, 3, 0, 1)
    frame.tokens.logprobs.drawn.CopyFrom(pack_floats([-1.0]))
    with pytest.raises(DataLoss):
        g.receive(frame)


def test_logprobs_follow_their_tokens() -> None:
    g = generation()
    g.receive(tokens(0, 3, 0))
    frame = tokens(1, 3, 0, 1, 2)
    frame.tokens.logprobs.drawn.CopyFrom(pack_floats([-1.0, -2.0, -3.0]))
    frame.tokens.logprobs.top_ids.extend([0, 5, 1, 6, 2, 7])
    values = [-1.0, -1.5, -2.0, -2.5, -3.0, -3.5]
    frame.tokens.logprobs.top.CopyFrom(pack_floats(values, (3, 2)))
    piece = g.receive(frame)
    assert [entry.token for entry in piece.logprobs] == [1, 2]
    assert [entry.logprob for entry in piece.logprobs] == [-2.0, -3.0]
    assert piece.logprobs[1].top == ((2, -3.0), (7, -3.5))


def test_a_new_stream_counts_frames_anew_and_keeps_what_was_spent() -> None:
    g = generation()
    g.receive(tokens(0, 3, 0))
    g.receive(tokens(1, 4, 1, 2, drafted=4))
    g.begin()
    g.receive(tokens(0, 6, 3))
    g.receive(finish(1, pb.FINISH_REASON_LENGTH, rounds=1, proposed_at=[1], accepted_at=[0]))
    assert g.output == [0, 1, 2, 3]
    assert (g.spent.rounds, g.spent.drafted_rounds) == (3, 1)
    assert (g.spent.accepted, g.spent.rejected) == (1, 3)
    assert g.spent.proposed_at == [2, 1, 1, 1]
    assert g.spent.accepted_at == [1, 0, 0, 0]


def test_lookups_of_a_stream_that_broke_are_counted_apart() -> None:
    g = generation()
    frame = tokens(0, 3, 0, 1, drafted=3)
    frame.tokens.source = DRAFT_SOURCE_LOOKUP
    g.receive(frame)
    g.receive(tokens(1, 5, 2, 3, drafted=2))
    g.begin()
    lists = ("proposed_at", "accepted_at", "lookup_proposed_at", "lookup_accepted_at")
    counted = {name: [1] for name in lists}
    g.receive(tokens(0, 7, 3))
    g.receive(finish(1, pb.FINISH_REASON_LENGTH, rounds=1, **counted))
    assert g.spent.proposed_at == [3, 2, 1]
    assert g.spent.lookup_proposed_at == [2, 1, 1]
    assert g.spent.lookup_accepted_at == [2, 0, 0]


def test_a_stop_string_ends_in_the_middle_of_a_round() -> None:
    g = generation(["cd"])
    piece = g.receive(tokens(0, 3, 0, 1, 2, 3, 4, 5, drafted=7))
    assert (piece.text, piece.finish_reason) == ("ab", "stop")
    assert g.output == [0, 1, 2, 3]
    assert (g.spent.accepted, g.spent.rejected) == (5, 2)


def test_held_back_text_comes_at_the_end() -> None:
    g = generation(["cx"])
    assert g.receive(tokens(0, 3, 1, 2)).text == "b"
    assert g.receive(finish(1, pb.FINISH_REASON_LENGTH)).text == "c"


def test_complete_without_finish() -> None:
    full, ended, open_ = generation(max_tokens=2), generation(), generation()
    full.receive(tokens(0, 3, 0, 1))
    ended.receive(tokens(0, 3, 0, END))
    open_.receive(tokens(0, 3, 0, 1))
    assert (full.complete, ended.complete, open_.complete) == (True, True, False)
    assert full.conclude().finish_reason == "length"
    assert ended.conclude().finish_reason == "stop"


@given(
    ids=st.lists(st.integers(0, 8), min_size=1, max_size=40),
    data=st.data(),
)
def test_any_cuts_and_repeats_give_the_same_output(ids: list[int], data: st.DataObject) -> None:
    """Streams break anywhere, and each begins with some tokens that came already."""
    g = generation(max_tokens=len(ids))
    text = ""
    while len(g.output) < len(ids):
        g.begin()
        for number in range(data.draw(st.integers(1, 4))):
            at = len(g.output)
            if at == len(ids):
                break
            start = data.draw(st.integers(0, at))
            end = data.draw(st.integers(at + 1, len(ids)))
            text += g.receive(tokens(number, len(PROMPT) + start, *ids[start:end])).text
    text += g.conclude().text
    assert g.output == ids
    assert text == "".join(chr(97 + i) for i in ids)
