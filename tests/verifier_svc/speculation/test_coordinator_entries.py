"""Which entries a drafter is sent, when, and when it is told of an end."""

from __future__ import annotations

import pytest

from specwire.messages import NO_DRAFT, CatchUpAck, Draft, DrafterDown, DrafterUp, ResendFrom
from tests.support.coordinator_fixtures import (
    LINK,
    WELCOME,
    Recorder,
    answer,
    decoding,
    drafting_with,
)
from verifier_svc.draft_length.controller import DraftLengthController
from verifier_svc.speculation import coordinator as drafting_module
from verifier_svc.speculation.coordinator import DraftCoordinator


def test_nothing_is_sent_without_a_drafter_and_nothing_piles_up(
    drafting: DraftCoordinator, port: Recorder
) -> None:
    for seq in range(50):
        one = decoding(5, seq)
        drafting.open(one)
        drafting.send([one], 0.0)
        drafting.close(seq)
    drafting.receive(DrafterUp(LINK, WELCOME), 1.0)
    drafting.send([], 1.0)
    assert port.rounds == []


def test_a_close_waits_for_the_acknowledgement_of_bulk_rows(
    drafting: DraftCoordinator, port: Recorder
) -> None:
    """On another connection, the Close could overtake rows that open the sequence again."""
    drafting.receive(DrafterUp(LINK, WELCOME), 0.0)
    one = decoding(150)
    drafting.open(one)
    drafting.send([one], 1.0)
    assert [(b.start, b.stop) for b in port.bulks] == [(0, 64), (64, 128), (128, 149)]
    drafting.close(1)
    drafting.send([], 1.1)
    for stop, rows in ((64, 64), (128, 64)):
        drafting.receive(CatchUpAck(1, stop, stop, rows), 1.2)
        drafting.send([], 1.2)
    assert port.closed == []
    drafting.receive(CatchUpAck(1, 149, 149, 21), 1.3)
    assert port.closed == [1]
    drafting.send([], 1.4)
    assert port.closed == [1]


def test_a_sequence_without_bulk_rows_is_closed_with_the_next_round(
    drafting: DraftCoordinator, port: Recorder
) -> None:
    drafting.receive(DrafterUp(LINK, WELCOME), 0.0)
    one = decoding(5)
    drafting.open(one)
    drafting.send([one], 1.0)
    drafting.close(1)
    drafting.close(1)
    drafting.close(99)
    drafting.send([], 1.1)
    assert port.closed == [1]
    drafting.receive(answer(Draft(1, 4, (7,))), 1.2)  # too late: of nobody
    assert drafting.gathering.remaining(1.2) == 0


def test_bulk_rows_stay_within_the_window(
    drafting: DraftCoordinator, port: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafting_module, "_WINDOW_BYTES", 2 * 64 * 8 * 4)
    drafting.receive(DrafterUp(LINK, WELCOME), 0.0)
    one, two = decoding(300, 1), decoding(300, 2)
    drafting.open(one)
    drafting.open(two)
    drafting.send([one, two], 1.0)
    assert [b.seq for b in port.bulks] == [1, 1]
    drafting.receive(CatchUpAck(1, 64, 64, 64), 1.1)
    drafting.send([one, two], 1.2)
    assert [b.seq for b in port.bulks] == [1, 1, 1]
    drafting.receive(DrafterDown("gone"), 1.3)
    drafting.receive(DrafterUp(LINK, WELCOME), 1.4)
    drafting.send([one, two], 1.5)
    assert [b.start for b in port.bulks[3:]] == [0, 64], "a new link starts with an empty window"


def test_entries_wait_where_no_draft_is_made_from_them(port: Recorder) -> None:
    policy = DraftLengthController(8)
    drafting = drafting_with(port, policy)
    drafting.receive(DrafterUp(LINK, WELCOME), 0.0)
    batch = [decoding(150, seq) for seq in range(6)]
    for one in batch:
        drafting.open(one)
    policy.drafts = False
    drafting.send(batch, 1.0)
    assert not port.bulks
    for wanted in (2, 3, 5):
        drafting._feeds[wanted].wanted = True
    drafting.send(batch, 1.1)
    assert {bulk.seq for bulk in port.bulks} == {2, 3}, "no more than two are probed"
    policy.drafts = True
    drafting.send(batch, 1.2)
    assert {bulk.seq for bulk in port.bulks} == set(range(6))


def test_what_is_fed_is_probed_again_and_else_the_newest(port: Recorder) -> None:
    policy = DraftLengthController(8)
    policy.choose = lambda records, *_: [NO_DRAFT] * len(records)  # type: ignore[method-assign]
    policy.drafts = False
    drafting = drafting_with(port, policy)
    drafting.receive(DrafterUp(LINK, WELCOME), 0.0)
    batch = [decoding(20, seq) for seq in range(6)]
    for one in batch:
        drafting.open(one)

    def probed() -> set[int]:
        """The sequences of the next probe."""
        for _ in range(40):
            drafting.send(batch, 1.0)
            if asked := {extend.seq for _, extends, _ in port.rounds for extend in extends}:
                port.rounds.clear()
                answers = (Draft(seq, 19, ()) for seq in asked)
                drafting.receive(answer(*answers), 1.01)
                return asked
        raise AssertionError("nothing is probed")

    assert probed() == {4, 5}
    newer = decoding(20, 6)
    drafting.open(newer)
    batch.append(newer)
    assert probed() == {4, 5}
    del batch[4]
    drafting.close(4)
    assert probed() == {5, 6}


def test_the_window_opens_while_drafts_pay(port: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 64 * 8 * 4
    monkeypatch.setattr(drafting_module, "_FIRST_WINDOW_BYTES", rows)
    monkeypatch.setattr(drafting_module, "_WINDOW_BYTES", 5 * rows)
    policy = DraftLengthController(8)
    drafting = drafting_with(port, policy)
    drafting.receive(DrafterUp(LINK, WELCOME), 0.0)
    one = decoding(900)
    drafting.open(one)
    drafting._feeds[1].wanted = True
    for drafts, under_way in ((False, 1), (True, 2), (True, 4), (True, 5), (False, 5)):
        policy.drafts = drafts
        drafting.send([one], 1.0)
        assert len(port.bulks) == under_way
    for bulk in port.bulks[:5]:
        drafting.receive(CatchUpAck(1, bulk.stop, bulk.stop, 64), 1.1)
    policy.drafts = False
    drafting.send([one], 1.2)
    assert len(port.bulks) == 6, "it is as small as at first"


def test_a_batch_that_rests_sends_nothing_and_waits_for_nothing(port: Recorder) -> None:
    policy = DraftLengthController(8)
    drafting = drafting_with(port, policy)
    drafting.receive(DrafterUp(LINK, WELCOME), 0.0)
    batch = [decoding(5, seq) for seq in range(9)]
    for one in batch:
        drafting.open(one)
    policy._plain_rounds = 1
    drafting.send(batch, 1.0)
    assert not port.rounds
    assert drafting.gathering.remaining(1.0) == 0
    # What came too late for this length is not taken to be of it.
    drafting._feeds[3].sender.next_round()
    batch[3].commit([50], 0)
    policy._plain_rounds = 1
    drafting.send(batch, 1.1)
    drafting.receive(answer(Draft(3, 4, (7, 8))), 1.2)
    assert batch[3].draft == ()


def test_a_need_is_followed_by_what_is_missing(drafting: DraftCoordinator, port: Recorder) -> None:
    drafting.receive(DrafterUp(LINK, WELCOME), 0.0)
    one = decoding(9)
    drafting.open(one)
    drafting.send([one], 1.0)
    drafting.receive(answer(needs=(ResendFrom(1, 3, 8),)), 1.1)
    assert drafting.gathering.remaining(1.1) == 0
    one.commit([50], 0)
    drafting.send([one], 1.2)
    extend = port.rounds[-1][1][0]
    assert (extend.start, extend.tokens) == (3, (4, 5, 6, 7, 8, 50))


def test_a_sequence_that_wants_no_drafts_is_not_mentioned(
    drafting: DraftCoordinator, port: Recorder
) -> None:
    drafting.receive(DrafterUp(LINK, WELCOME), 0.0)
    one = decoding(5, max_draft_tokens=0)
    drafting.open(one)
    drafting.send([one], 1.0)
    drafting.close(1)
    drafting.send([], 1.1)
    assert port.rounds == []


def test_without_drafts_nothing_is_sent(port: Recorder) -> None:
    """A draft length fixed at 0: entries too would only cost time."""
    drafting = drafting_with(port, DraftLengthController(8, fixed=0))
    drafting.receive(DrafterUp(LINK, WELCOME), 0.0)
    one = decoding(500)
    drafting.open(one)
    for _ in range(3):
        drafting.send([one], 1.0)
        one.commit([50], 0)
    assert not port.bulks
    assert not port.rounds
