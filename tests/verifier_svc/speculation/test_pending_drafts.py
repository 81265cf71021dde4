"""Drafts that were asked for: who waits for them, and until when."""

from __future__ import annotations

from verifier_svc.speculation.pending_drafts import DraftRequest, PendingDrafts


def asked(gathering: PendingDrafts, *seqs: int, deadline: float = 10.0) -> DraftRequest:
    request = DraftRequest(frozenset(seqs), 1.0, deadline, 3)
    gathering.ask(seqs, request)
    return request


def test_nothing_to_wait_for_means_no_wait() -> None:
    gathering = PendingDrafts()
    assert gathering.remaining(0.0) == 0
    asked(gathering)
    assert gathering.remaining(1.0) == 0


def test_a_step_leaves_once_every_answer_is_there() -> None:
    gathering = PendingDrafts()
    request = asked(gathering, 1, 2)
    assert gathering.remaining(4.0) == 6.0
    gathering.settle(1)
    gathering.settle(99)  # of no concern
    assert gathering.remaining(4.0) == 6.0
    assert gathering.late() == [request]
    gathering.settle(2)
    assert gathering.remaining(4.0) == 0
    assert gathering.late() == []
    assert gathering.awaited(1) is request, "what it cost is known until the sequence is verified"
    gathering.drop(1)
    assert gathering.awaited(1) is None


def test_a_step_leaves_at_its_deadline_and_never_later() -> None:
    gathering = PendingDrafts()
    request = asked(gathering, 1)
    assert gathering.remaining(10.0) == 0
    assert gathering.remaining(11.0) == 0
    assert gathering.late() == [request], "who was late can be told"


def test_a_lost_drafter_ends_the_wait() -> None:
    gathering = PendingDrafts()
    asked(gathering, 1, 2, 3)
    gathering.clear()
    assert gathering.remaining(0.0) == 0
    assert gathering.awaited(1) is None


def test_a_sequence_that_ended_is_not_waited_for() -> None:
    gathering = PendingDrafts()
    asked(gathering, 1)
    gathering.drop(1)
    assert gathering.remaining(0.0) == 0
    assert gathering.answered([1]) == []


def test_each_cohort_waits_for_its_own_drafts() -> None:
    gathering = PendingDrafts()
    first, second = asked(gathering, 1, 2), asked(gathering, 3, 4, deadline=20.0)
    assert gathering.remaining(4.0, resting={1, 2}) == 16.0
    assert gathering.remaining(4.0, resting={3, 4}) == 6.0
    assert gathering.remaining(4.0) == 16.0
    gathering.settle(1)
    gathering.settle(2)
    assert gathering.remaining(4.0, resting={3, 4}) == 0
    assert gathering.late({3, 4}) == []
    assert gathering.late({1, 2}) == [second]
    assert gathering.answered([1, 2, 99]) == [first]


def test_the_next_request_takes_the_place_of_the_last() -> None:
    gathering = PendingDrafts()
    asked(gathering, 1, 2)
    gathering.drop(1)
    gathering.drop(2)
    asked(gathering, 2, deadline=20.0)
    gathering.settle(2)
    assert gathering.remaining(5.0) == 0


def test_what_nobody_awaits_is_known_and_not_waited_for() -> None:
    gathering = PendingDrafts()
    request = DraftRequest(frozenset({2}), 1.0, 10.0, 4)
    gathering.ask([1, 2], request)
    gathering.settle(2)
    assert gathering.remaining(1.0) == 0
    assert gathering.awaited(1) is None
    assert gathering.answered([1]) == [request]
