"""What is remembered of drafts, and when a source is tried again."""

import math

import pytest

from specwire.messages import NO_DRAFT, DraftBudget, DraftSource
from verifier_svc.draft_length.acceptance_model import (
    PROBE_LENGTH,
    PositionalAcceptance,
    ProbeScheduler,
)
from verifier_svc.draft_length.controller import DraftLengthController

CHAIN, LOOKUP = DraftSource.CHAIN, DraftSource.LOOKUP


def test_acceptance_is_conditional_on_the_position_before() -> None:
    record = PositionalAcceptance(4)
    for _ in range(200):
        record.observe(4, 2)
    assert record.rates()[0] > 0.9
    assert record.rates()[1] > 0.9
    assert record.rates()[2] < 0.1
    assert record.rates()[3] == record.rates()[2], "never tried: like the one before"
    assert math.prod(record.rates()) < 0.1


def test_a_new_sequence_starts_from_what_others_saw() -> None:
    policy = DraftLengthController(4)
    old = policy.new_record()
    for _ in range(100):
        old.observe(CHAIN, 4, 0)
        old.observe(LOOKUP, 4, 4)
        old.observe_search(False)
    new = policy.new_record()
    assert new.chain.rates()[0] < 0.1
    assert new.lookup.rates()[0] > 0.9
    assert new.found.rates()[0] < 0.1


def test_chain_probes_are_few_and_no_longer_than_what_is_waited_for() -> None:
    probes, caps = ProbeScheduler(), [DraftBudget(8)] * 20
    for _ in range(3):
        asked = [probes.apply([NO_DRAFT] * 20, caps, 16, range(4)) for _ in range(16)]
        assert not any(wish.chain for wishes in asked[:-1] for wish in wishes)
        assert asked[-1] == [*[DraftBudget(PROBE_LENGTH)] * 4, *[NO_DRAFT] * 16]
    probes = ProbeScheduler(since_chain=15)
    beside = probes.apply(
        [DraftBudget(2), NO_DRAFT], [DraftBudget(8), DraftBudget(8)], 16, range(2)
    )
    assert beside == [DraftBudget(2), DraftBudget(2)]
    probes = ProbeScheduler(since_chain=15)
    assert probes.apply([NO_DRAFT], [DraftBudget(1)], 16, [0]) == [DraftBudget(1)], "the cap binds"


def test_what_one_sequence_showed_is_forgotten_while_it_is_not_asked() -> None:
    policy = DraftLengthController(4)
    record, shared = policy.new_record(), policy.new_record()
    for _ in range(40):
        policy.new_record().observe(CHAIN, 1, 1)
        record.observe(CHAIN, 1, 0)
    assert record.chain.rates()[0] < 0.3
    for _ in range(1000):
        record.chain.fade()
    assert record.chain.rates()[0] == pytest.approx(shared.chain.rates()[0], abs=0.05)


def test_what_a_drafter_declares_is_believed_until_its_drafts_tell_more() -> None:
    policy = DraftLengthController(4)
    policy.expect([0.75, 0.25])
    record = policy.new_record()
    assert record.chain.rates() == [0.75, 0.25, 0.25, 0.25]
    assert record.lookup.rates() == [0.5] * 4
    record.observe(CHAIN, 1, 0)
    assert 0.7 < record.chain.rates()[0] < 0.75
    for _ in range(100):
        record.observe(CHAIN, 2, 0)
    assert record.chain.rates()[0] < 0.05
    policy.expect([0.5])
    assert policy.new_record().chain.rates() == [0.5] * 4, "another drafter came"
    policy.expect([])
    assert policy.new_record().chain.rates() == [0.5] * 4, "one that declares nothing"
