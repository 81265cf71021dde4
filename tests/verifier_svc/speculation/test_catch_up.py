"""Which sequences are sent rows ahead of their drafts: those whose drafts pay for them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from specwire.messages import NO_DRAFT, CatchUpAck, Draft, DraftBudget, DrafterUp
from tests.support.coordinator_fixtures import (
    LINK,
    WELCOME,
    Recorder,
    answer,
    decoding,
    drafting_with,
)
from verifier_svc.draft_length.controller import DraftLengthController
from verifier_svc.request.sequence import Sequence
from verifier_svc.speculation.coordinator import DraftCoordinator

HERE = replace(WELCOME, device="here")


def policy_with(row: float, step: float = 0.02, **options: int) -> DraftLengthController:
    """A policy that wants drafts of three, with the seconds of a row and of a plain step."""
    policy = DraftLengthController(8, **options)
    policy.drafts = True
    policy.choose = lambda records, caps, *_: [  # type: ignore[method-assign]
        DraftBudget(min(3, cap.chain)) for cap in caps
    ]
    policy.step_cost.observe(1, step)
    price(policy, row)
    return policy


def price(policy: DraftLengthController, row: float) -> None:
    """Lets a drafter say for the first time what a row costs."""
    for _ in range(4):
        policy.observe_rows(100, 100 * row)


def linked(
    port: Recorder, policy: DraftLengthController, row: float, device: str = "here"
) -> DraftCoordinator:
    """A drafting whose drafter is there and has said what a row costs."""
    drafting = drafting_with(port, policy, device)
    drafting.receive(DrafterUp(LINK, HERE), 0.0)
    price(policy, row)
    return drafting


def asked(port: Recorder) -> list[int]:
    return [extend.seq for _, extends, _ in port.rounds for extend in extends]


def grow(sequence: Sequence, tokens: int) -> None:
    for _ in range(tokens):
        sequence.commit([50], 0)


@pytest.mark.parametrize(
    ("row", "rows", "tokens", "size", "worth"),
    [
        (0.0, 10_000, 1, 1, True),  # nobody knows what it costs
        (1.0, 0, 0, 1, True),  # nothing to send
        (0.0001, 399, 8, 1, True),  # .04 for 8 * .5 * .02
        (0.0001, 401, 8, 1, False),
        (0.0001, 401, 9, 1, True),
        (0.0001, 401, 9, 2, False),  # two share a step
    ],
)
def test_rows_are_worth_half_of_what_the_first_draft_tokens_save(
    row: float, rows: int, tokens: int, size: int, worth: bool
) -> None:
    policy = policy_with(row)
    assert policy.affords(policy.new_record(), rows, tokens, size) is worth


def test_a_good_source_makes_rows_worth_more() -> None:
    policy = policy_with(0.0001)
    record = policy.new_record()
    assert not policy.affords(record, 700, 8, 1)
    for _ in range(300):
        record.observe_search(True)
        record.lookup.observe(1, 1)
    assert policy.affords(record, 700, 8, 1), "what is found is right"
    for _ in range(300):
        record.observe_search(False)
    assert not policy.affords(record, 700, 8, 1), "nothing is found"


def test_the_price_of_rows_follows_what_the_drafter_says() -> None:
    policy = policy_with(0.0001)
    record = policy.new_record()
    for _ in range(60):
        policy.observe_rows(64, 64 * 0.001)
    assert not policy.affords(record, 300, 8, 1)
    policy.expect([0.5])
    assert policy.affords(record, 300, 8, 1), "another drafter may be faster"


def test_a_text_that_goes_on_is_worth_its_rows_in_time(port: Recorder) -> None:
    drafting = linked(port, policy_with(0.0001), 0.0001)
    long, short = decoding(450, 1), decoding(9, 2)
    drafting.open(long)
    drafting.open(short)
    drafting.send([long, short], 1.0)
    assert not port.bulks
    assert asked(port) == [2]
    grow(long, 20)
    drafting.send([long, short], 1.1)
    assert [bulk.stop for bulk in port.bulks[-1:]] == [469], "24 tokens so far, at .01 each"


def test_what_ends_soon_is_sent_nothing(port: Recorder) -> None:
    drafting = linked(port, policy_with(0.0001), 0.0001)
    one = decoding(150)
    drafting.open(one)
    grow(one, 96)
    drafting.send([one], 1.0)
    assert not port.bulks, "two tokens are left"


def test_nobody_is_probed_who_is_not_worth_it(port: Recorder) -> None:
    policy = policy_with(0.001)
    policy.choose = lambda records, *_: [NO_DRAFT] * len(records)  # type: ignore[method-assign]
    drafting = linked(port, policy, 0.001)
    long, short = decoding(450, 1), decoding(9, 2)
    drafting.open(short)
    drafting.open(long)
    for _ in range(140):
        drafting.send([long, short], 1.0)
        for seq in asked(port):
            drafting.receive(answer(Draft(seq, short.entries, ())), 1.01)
    assert set(asked(port)) == {2}
    assert not port.bulks


def test_who_lacks_least_is_probed_first(port: Recorder) -> None:
    policy = policy_with(0.0)
    policy.choose = lambda records, *_: [NO_DRAFT] * len(records)  # type: ignore[method-assign]
    policy.drafts = False
    drafting = linked(port, policy, 0.0)
    batch = [decoding(length, seq) for seq, length in enumerate((300, 100, 200, 90, 400))]
    for one in batch:
        drafting.open(one)
    for _ in range(300):
        drafting.send(batch, 1.0)
    assert {bulk.seq for bulk in port.bulks} == {1, 3}


def prompt(length: int, seq: int, computed: int) -> Sequence:
    """A sequence in the middle of its prompt."""
    one = decoding(length, seq)
    one.computed = computed
    return one


def test_a_prompt_beside_others_waits_until_it_is_run(port: Recorder) -> None:
    drafting = linked(port, policy_with(0.0), 0.0)
    one, other = decoding(9, 1), prompt(300, 2, 200)
    drafting.open(one)
    drafting.open(other)
    drafting.send([one, other], 1.0)
    assert not port.bulks
    other.computed = 299
    drafting.send([one, other], 1.1)
    assert {bulk.seq for bulk in port.bulks} == {2}


def test_a_prompt_that_nobody_decodes_beside_is_sent_as_it_runs(port: Recorder) -> None:
    drafting = linked(port, policy_with(0.0), 0.0)
    one = prompt(300, 1, 200)
    drafting.open(one)
    drafting.send([one], 1.0)
    assert port.bulks[-1].stop == 200


@pytest.mark.parametrize("why", ["a device of its own", "a fixed length"])
def test_rows_that_cost_nothing_or_are_ordered_are_sent_at_once(port: Recorder, why: str) -> None:
    policy = policy_with(1.0, fixed=3) if "fixed" in why else policy_with(1.0)
    drafting = linked(port, policy, 1.0, device="elsewhere" if "own" in why else "here")
    one, other = decoding(9, 1), prompt(300, 2, 200)
    drafting.open(one)
    drafting.open(other)
    drafting.send([one, other], 1.0)
    assert {bulk.seq for bulk in port.bulks} == {2}


def test_the_drafter_says_what_rows_cost(port: Recorder) -> None:
    drafting = linked(port, policy_with(0.0), 0.0)
    one, other = decoding(150, 1), decoding(400, 2)
    drafting.open(one)
    drafting.send([one], 1.0)
    for bulk in port.bulks:
        drafting.receive(CatchUpAck(1, bulk.stop, bulk.stop, len(bulk.tokens), 9_000_000), 1.1)
    port.bulks.clear()
    drafting.open(other)
    drafting.send([one, other], 1.2)
    assert not port.bulks


def test_a_first_message_that_is_slow_does_not_keep_rows_away() -> None:
    policy = policy_with(0.0001)
    policy.expect([0.5])
    for each in (0.002, 0.0001, 0.0002, 0.0001):
        assert policy.affords(policy.new_record(), 300, 8, 1), "too little is known"
        policy.observe_rows(64, 64 * each)
    assert policy.affords(policy.new_record(), 300, 8, 1), "the fastest counts"


def test_a_price_that_keeps_rows_away_is_doubted_until_it_is_seen_again(port: Recorder) -> None:
    policy = policy_with(0.0005)
    drafting = linked(port, policy, 0.0005)
    one = decoding(450)
    drafting.open(one)
    rounds = 0
    while not port.bulks:
        drafting.send([one], 1.0)
        rounds += 1
    assert 50 < rounds < 200, "a fifth of the price would do"
    assert policy.affords(policy.new_record(), 350, 8, 1)
    policy.observe_rows(64, 64 * 0.0005)
    assert not policy.affords(policy.new_record(), 350, 8, 1)
