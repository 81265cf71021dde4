"""What is asked of a drafter for which sequence, and what becomes of its answers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from specwire.messages import (
    CatchUpAck,
    Draft,
    DraftBudget,
    DraftCost,
    DrafterDown,
    DrafterUp,
    DraftSource,
    Proposals,
)
from tests.support.coordinator_fixtures import (
    LINK,
    WELCOME,
    Recorder,
    answer,
    decoding,
    drafting_with,
)
from verifier_svc.draft_length.controller import DraftLengthController
from verifier_svc.speculation.coordinator import DraftCoordinator


def test_a_round_carries_the_entries_their_successors_and_the_opening(
    drafting: DraftCoordinator, port: Recorder
) -> None:
    drafting.receive(DrafterUp(LINK, WELCOME), 0.0)
    one = decoding(5)
    drafting.open(one)
    drafting.send([one], 1.0)
    ((link, (extend,), closes),) = port.rounds
    assert (link, closes) == (LINK, [])
    assert (extend.start, extend.tokens, extend.wish) == (0, (1, 2, 3, 4), DraftBudget(3))
    assert extend.opening is not None
    assert (extend.opening.first_token, extend.opening.output_start) == (0, 4)
    assert drafting.gathering.remaining(1.0) == pytest.approx(0.1)
    drafting.receive(answer(Draft(1, 4, (7, 8, 9))), 1.01)
    assert one.draft == (7, 8, 9)
    assert drafting.gathering.remaining(1.02) == 0


def test_a_late_draft_is_not_used_and_still_scored(
    drafting: DraftCoordinator, port: Recorder
) -> None:
    drafting.receive(DrafterUp(LINK, WELCOME), 0.0)
    one = decoding(5)
    drafting.open(one)
    drafting.send([one], 1.0)
    one.commit([7], 0)
    one.commit([8], 0)
    drafting.send([one], 1.2)
    assert len(port.rounds) == 1, "the first request is outstanding"
    before = drafting._feeds[1].record.chain.rates()[0]
    drafting.receive(answer(Draft(1, 4, (7, 6))), 1.3)
    assert one.draft == ()
    assert drafting._feeds[1].record.chain.rates()[0] > before
    drafting.send([one], 1.4)
    assert port.rounds[-1][1][0].start == 4


def test_drafts_are_cut_to_what_fits(drafting: DraftCoordinator) -> None:
    drafting.receive(DrafterUp(LINK, WELCOME), 0.0)
    one = decoding(5, max_draft_tokens=2)
    drafting.open(one)
    drafting.send([one], 1.0)
    drafting.receive(answer(Draft(1, 4, (7, 8, 9, 10, 11))), 1.1)
    assert one.draft == (7, 8)


LOOKING = replace(WELCOME, lookup_match=3)


def test_lookups_are_asked_for_where_the_drafter_has_them(
    drafting: DraftCoordinator, port: Recorder
) -> None:
    one, two = decoding(5, 1), decoding(5, 2, max_draft_tokens=2)
    drafting.receive(DrafterUp(LINK, LOOKING), 0.0)
    drafting.open(one)
    drafting.open(two)
    drafting.send([one, two], 1.0)
    assert [extend.wish for extend in port.rounds[-1][1]] == [DraftBudget(3, 3), DraftBudget(2, 2)]
    found = Draft(1, 4, (7, 8, 9), source=DraftSource.LOOKUP)
    drafting.receive(answer(found, Draft(2, 4, (7, 8))), 1.01)
    assert (one.draft, one.draft_source) == ((7, 8, 9), DraftSource.LOOKUP)
    assert (two.draft, two.draft_source) == ((7, 8), DraftSource.CHAIN)
    records = [drafting._feeds[seq].record for seq in (1, 2)]
    # Both sequences' searches shape what either expects.
    assert records[0].found.rates()[0] > records[1].found.rates()[0]
    one.commit([7, 8, 9, 50], 3)
    two.commit([50], 0)
    drafting.observe(1)
    drafting.observe(2)
    assert records[0].lookup.rates()[0] > 0.5 > records[1].chain.rates()[0]


def test_a_lookup_is_cut_to_what_fits_and_an_empty_one_is_a_miss(
    drafting: DraftCoordinator,
) -> None:
    one = decoding(5, max_draft_tokens=2)
    drafting.receive(DrafterUp(LINK, LOOKING), 0.0)
    drafting.open(one)
    drafting.send([one], 1.0)
    drafting.receive(answer(Draft(1, 4, (7, 8, 9), source=DraftSource.LOOKUP)), 1.1)
    assert list(one.draft) == [7, 8]
    hit = drafting._feeds[1].record.found.rates()[0]
    one.commit([50], 0)
    drafting.send([one], 1.2)
    drafting.receive(answer(Draft(1, 5, (), source=DraftSource.LOOKUP)), 1.3)
    assert not one.draft
    assert drafting.gathering.remaining(1.3) == 0
    assert drafting._feeds[1].record.found.rates()[0] < hit


def test_a_late_lookup_is_scored_as_one(drafting: DraftCoordinator) -> None:
    one = decoding(5)
    drafting.receive(DrafterUp(LINK, LOOKING), 0.0)
    drafting.open(one)
    drafting.send([one], 1.0)
    one.commit([7], 0)
    one.commit([8], 0)
    drafting.send([one], 1.2)
    record = drafting._feeds[1].record
    chain, lookup = record.chain.rates()[0], record.lookup.rates()[0]
    drafting.receive(answer(Draft(1, 4, (7, 6), source=DraftSource.LOOKUP)), 1.3)
    assert one.draft == ()
    assert record.lookup.rates()[0] > lookup
    assert record.lookup.rates()[1] < 0.5
    assert record.chain.rates()[0] == chain


def test_the_cost_of_an_answer_is_that_of_its_longest_chain(
    port: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = DraftLengthController(8, fixed=3)
    seen: list[int] = []
    monkeypatch.setattr(policy, "observe_draft", lambda length, *_, **__: seen.append(length))
    drafting = drafting_with(port, policy)
    one = decoding(5)
    drafting.receive(DrafterUp(LINK, LOOKING), 0.0)
    drafting.open(one)
    for base, draft in (
        (4, Draft(1, 4, (7, 8, 9), source=DraftSource.LOOKUP)),
        (5, Draft(1, 5, (7, 8))),
    ):
        assert one.entries == base
        drafting.send([one], 1.0)
        drafting.receive(answer(draft), 1.1)
        one.commit([50], 0)
    assert seen == [0, 2]


def test_probes_are_not_waited_for(port: Recorder) -> None:
    """Where nothing pays, chains and lookups are asked for now and then, and apart."""
    policy = DraftLengthController(8)
    drafting = drafting_with(port, policy)
    one = decoding(5)
    drafting.receive(DrafterUp(LINK, LOOKING), 0.0)
    for _ in range(50):
        policy.step_cost.observe(1, 0.001)
        policy.observe_draft(4, 0.0008)
        for source in DraftSource:
            policy.new_record().observe(source, 4, 0)
    drafting.open(one)
    for _ in range(90):
        drafting.send([one], 1.0)
        assert drafting.gathering.remaining(1.0) == 0
        if port.rounds and port.rounds[-1][1][0].stop == one.entries:
            drafting.receive(answer(Draft(1, one.entries, ())), 1.1)
        one.commit([50], 0)
    wishes = [extend.wish for _, extends, _ in port.rounds for extend in extends]
    assert wishes == [*[DraftBudget(0, 1)] * 4, DraftBudget(4, 0), DraftBudget(0, 1)]


def test_the_policy_is_told_what_a_drafter_expects_of_itself(port: Recorder) -> None:
    policy = DraftLengthController(8)
    drafting = drafting_with(port, policy)
    drafting.receive(DrafterUp(LINK, replace(WELCOME, expected_acceptance=(0.25,))), 0.0)
    assert policy.new_record().chain.rates()[0] == 0.25
    drafting.receive(DrafterDown("gone"), 1.0)
    drafting.receive(DrafterUp(LINK, WELCOME), 2.0)
    assert policy.new_record().chain.rates()[0] == 0.5


def test_a_chain_is_cut_where_it_is_unsure_and_learned_from_as_a_whole(port: Recorder) -> None:
    policy = DraftLengthController(8)
    drafting = drafting_with(port, policy)
    drafting.receive(DrafterUp(LINK, WELCOME), 0.0)
    # Rows are dear, drafts and their first tokens are not.
    for _ in range(50):
        policy.step_cost.observe(1, 0.010)
        policy.step_cost.observe(5, 0.014)
        policy.observe_draft(3, 0.0001)
    one = decoding(5)
    drafting.open(one)
    drafting.send([one], 1.0)
    asked = port.rounds[-1][1][0].wish.chain
    assert asked >= 2
    tokens = (7, 8, 9, 10, 11, 12, 13, 14)[:asked]
    unsure = (0.95, 0.01, *[0.95] * 6)[:asked]
    drafting.receive(answer(Draft(1, 4, tokens, unsure)), 1.01)
    assert one.draft == (7,)
    rates = drafting._feeds[1].record.chain.rates()
    one.commit([7, 8], 1)
    drafting.observe(1)
    learned = drafting._feeds[1].record.chain.rates()
    pairs = zip(learned[:2], rates[:2], strict=True)
    assert all(more > less for more, less in pairs), "one after the last verified is known too"
    drafting.observe(1)
    assert drafting._feeds[1].record.chain.rates() == learned, "a draft counts once"


@pytest.mark.parametrize(("device", "cohorts"), [("elsewhere", 2), ("here", 1), ("", 1)])
def test_only_who_ran_is_asked_for_and_only_a_device_of_its_own_makes_cohorts(
    port: Recorder, device: str, cohorts: int
) -> None:
    policy = DraftLengthController(8, fixed=3)
    drafting = drafting_with(port, policy)
    drafting.receive(DrafterUp(LINK, replace(WELCOME, device=device)), 0.0)
    for rows in (1, 4, 16) * 5:
        policy.step_cost.observe(rows, 0.001 * rows)
        policy.observe_draft(3, 0.008)
    batch = [decoding(5, seq) for seq in (1, 2, 3, 4)]
    for one in batch:
        drafting.open(one)
    for turn in range(4):
        resting = drafting.resting
        ran = {one.id for one in batch} - resting
        drafting.send(batch, 1.0 + turn)
        asked = {extend.seq for extend in port.rounds[-1][1]}
        assert asked == ran
        assert len(drafting.resting) == (2 if cohorts == 2 else 0)
        if turn and cohorts == 2:
            assert drafting.resting == asked, "who was asked for last rests"
        drafting.receive(answer(*[Draft(seq, batch[seq - 1].entries, (7,)) for seq in asked]), 2.0)
        for one in batch:
            if one.id not in drafting.resting:
                one.commit([7, 8], 1)
    drafting.receive(DrafterDown("gone"), 9.0)
    drafting.send(batch, 9.1)
    assert not drafting.resting


def test_the_other_cohorts_drafts_are_no_part_of_what_drafts_cost(
    port: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = DraftLengthController(8, fixed=3)
    drafting = drafting_with(port, policy)
    seen: list[float] = []
    monkeypatch.setattr(policy, "observe_draft", lambda _, seconds, **__: seen.append(seconds))
    drafting.receive(DrafterUp(LINK, replace(WELCOME, device="elsewhere")), 0.0)
    pair = [decoding(5, 1), decoding(5, 2)]
    for one in pair:
        drafting.open(one)
    for rested in (frozenset[int](), frozenset([2])):
        drafting.resting = rested
        drafting.send(pair, 1.0)
        drafts = [Draft(one.id, one.entries, (7,)) for one in pair if one.id not in rested]
        cost = DraftCost(queue_us=30_000, compute_us=20_000)
        drafting.receive(Proposals(tuple(drafts), (), cost), 1.06)
        pair[0].commit([50], 0)
    assert seen == pytest.approx([0.06, 0.03])


@pytest.mark.parametrize(("width", "most"), [(8, 64), (6144, 42), (400_000, 1)])
def test_a_bulk_message_stays_below_a_mebibyte(width: int, most: int, port: Recorder) -> None:
    """Rows of fp32; 6144 of them are the 24 KiB of an 8B's."""
    drafting = drafting_with(port, DraftLengthController(8, 3), feature_width=width)
    drafting.receive(DrafterUp(LINK, WELCOME), 0.0)
    one = decoding(200)
    drafting.open(one)
    drafting.send([one], 1.0)
    assert len(port.bulks[0].tokens) == most
    assert most == 1 or most * width * 4 + (16 << 10) <= 1 << 20
    sent = len(port.bulks)
    drafting.receive(CatchUpAck(1, most, most, sum(len(bulk.tokens) for bulk in port.bulks)), 1.1)
    drafting.send([one], 1.2)
    assert len(port.bulks) > sent or not one.entries - sum(len(b.tokens) for b in port.bulks)
    assert max(len(bulk.tokens) for bulk in port.bulks) == most
