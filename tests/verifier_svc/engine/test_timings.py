"""Where the time of sequences goes, of those that run and of those that rest."""

from __future__ import annotations

import pytest

from specwire.messages import DraftCost
from tests.support.coordinator_fixtures import decoding
from verifier_svc.engine.timings import StepTimes, charge_step, charge_wait
from verifier_svc.request.sequence import Sequence
from verifier_svc.scheduling.scheduler import ScheduledRows
from verifier_svc.speculation.pending_drafts import DraftRequest, PendingDrafts


def work(sequence: Sequence) -> ScheduledRows:
    return ScheduledRows(sequence, sequence.computed, (sequence.tokens[-1],), 1)


def test_a_step_is_charged_to_all_who_decode_and_ends_prefills() -> None:
    runs, rests, new, prompt = (decoding(5, seq) for seq in (1, 2, 3, 4))
    runs.first_token = rests.first_token = 0.5
    new.admitted = 0.6
    charge_step([runs, rests, new, prompt], [work(runs), work(new)], StepTimes(1.0, 1.4, 1.5))
    for one in (runs, rests):
        assert (one.timings.target, one.timings.draw) == pytest.approx((0.4, 0.1))
    assert (new.first_token, new.timings.prefill) == pytest.approx((1.5, 0.9))
    assert new.timings.accounted == 0
    assert prompt.timings.accounted == prompt.first_token == 0


def test_a_wait_is_charged_once_and_to_those_that_wait() -> None:
    """Drafts asked for at 1.0, then another cohort's step until 1.5, then a wait until 1.6."""
    waits, probed, plain = (decoding(5, seq) for seq in (1, 2, 3))
    gathering = PendingDrafts()
    cost = DraftCost(queue_us=20_000, compute_us=50_000)
    gathering.ask([1, 2], DraftRequest(frozenset([1]), 1.0, 9.0, 3, cost=cost))
    charge_wait([waits, probed, plain], gathering, 0.9, 1.0)
    assert waits.timings.accounted == 0
    charge_wait([waits, probed, plain], gathering, 1.5, 1.6)
    timings = waits.timings
    assert (timings.drafter, timings.drafter_queue) == pytest.approx((0.05, 0.02))
    assert timings.accounted == pytest.approx(0.1)
    assert probed.timings.accounted == plain.timings.accounted == 0
