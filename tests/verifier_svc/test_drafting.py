"""What is sent to a drafter for which sequence, without an engine or a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch

from specwire.draft import (
    Ack,
    Draft,
    DraftCost,
    DraftEvent,
    DraftSource,
    Extend,
    Linked,
    Need,
    Proposals,
    Unlinked,
    Welcome,
    Wish,
)
from verifier_svc import drafting as drafting_module
from verifier_svc.blocks import Extent
from verifier_svc.cache import KVCache
from verifier_svc.drafting import Drafting
from verifier_svc.generation import Generation, Sampling
from verifier_svc.policy import DraftLengthPolicy
from verifier_svc.sequence import Sequence as Generating

WELCOME = Welcome("hash", "", (0, 1), 4, 97, 97, max_length=1000, max_draft_tokens=8)
LINK = 5


@dataclass
class Recorder:
    """A DraftPort that only remembers."""

    rounds: list[tuple[int, list[Extend], list[int]]] = field(default_factory=list)
    bulks: list[Extend] = field(default_factory=list)

    def start(self, deliver: Callable[[DraftEvent], None]) -> None:
        pass

    async def close(self) -> None:
        pass

    def round(
        self,
        link: int,
        extends: Sequence[Extend],
        features: Sequence[torch.Tensor],
        closes: Sequence[int],
    ) -> None:
        assert [len(e.tokens) for e in extends] == [len(f) for f in features]
        self.rounds.append((link, list(extends), list(closes)))

    def bulk(self, link: int, extend: Extend, features: torch.Tensor) -> None:
        assert link == LINK
        assert len(extend.tokens) == len(features)
        self.bulks.append(extend)

    @property
    def closed(self) -> list[int]:
        return [seq for _, _, closes in self.rounds for seq in closes]


@pytest.fixture
def port() -> Recorder:
    return Recorder()


def drafting_with(port: Recorder, policy: DraftLengthPolicy) -> Drafting:
    cache = KVCache(
        blocks=100, layers=1, kv_heads=1, head_dim=4, feature_width=8, dtype=torch.float32,
        device=torch.device("cpu"),
    )  # fmt: skip
    return Drafting(port, policy, cache, deadline=0.1)


@pytest.fixture
def drafting(port: Recorder) -> Drafting:
    return drafting_with(port, DraftLengthPolicy(8, fixed=3))


def decoding(length: int, seq: int = 1, max_draft_tokens: int = 8) -> Generating:
    """A sequence whose prompt has been run."""
    tokens = tuple(range(length))
    made = Generating(
        seq, Generation("r", tokens, length - 1, Sampling(max_tokens=99), max_draft_tokens),
        frozenset(), 1000,
    )  # fmt: skip
    made.extent = Extent(0, 50)
    made.computed = length - 1
    return made


def answer(*drafts: Draft, needs: tuple[Need, ...] = ()) -> Proposals:
    return Proposals(drafts, needs, DraftCost())


def test_a_round_carries_the_entries_their_successors_and_the_opening(
    drafting: Drafting, port: Recorder
) -> None:
    drafting.receive(Linked(LINK, WELCOME), 0.0)
    one = decoding(5)
    drafting.open(one)
    drafting.send([one], 1.0)
    ((link, (extend,), closes),) = port.rounds
    assert (link, closes) == (LINK, [])
    assert (extend.start, extend.tokens, extend.wish) == (0, (1, 2, 3, 4), Wish(3))
    assert extend.opening is not None
    assert (extend.opening.first_token, extend.opening.output_start) == (0, 4)
    assert drafting.gathering.remaining(1.0) == pytest.approx(0.1)
    drafting.receive(answer(Draft(1, 4, (7, 8, 9))), 1.01)
    assert one.draft == (7, 8, 9)
    assert drafting.gathering.remaining(1.02) == 0


def test_nothing_is_sent_without_a_drafter_and_nothing_piles_up(
    drafting: Drafting, port: Recorder
) -> None:
    for seq in range(50):
        one = decoding(5, seq)
        drafting.open(one)
        drafting.send([one], 0.0)
        drafting.close(seq)
    drafting.receive(Linked(LINK, WELCOME), 1.0)
    drafting.send([], 1.0)
    assert port.rounds == []


def test_a_close_waits_for_the_acknowledgement_of_bulk_rows(
    drafting: Drafting, port: Recorder
) -> None:
    """On another connection, the Close could overtake rows that open the sequence again."""
    drafting.receive(Linked(LINK, WELCOME), 0.0)
    one = decoding(150)
    drafting.open(one)
    drafting.send([one], 1.0)
    assert [(b.start, b.stop) for b in port.bulks] == [(0, 64), (64, 128), (128, 149)]
    drafting.close(1)
    drafting.send([], 1.1)
    for stop, rows in ((64, 64), (128, 64)):
        drafting.receive(Ack(1, stop, stop, rows), 1.2)
        drafting.send([], 1.2)
    assert port.closed == []
    drafting.receive(Ack(1, 149, 149, 21), 1.3)
    assert port.closed == [1]
    drafting.send([], 1.4)
    assert port.closed == [1]


def test_a_sequence_without_bulk_rows_is_closed_with_the_next_round(
    drafting: Drafting, port: Recorder
) -> None:
    drafting.receive(Linked(LINK, WELCOME), 0.0)
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
    drafting: Drafting, port: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafting_module, "_WINDOW_BYTES", 2 * 64 * 8 * 4)
    drafting.receive(Linked(LINK, WELCOME), 0.0)
    one, two = decoding(300, 1), decoding(300, 2)
    drafting.open(one)
    drafting.open(two)
    drafting.send([one, two], 1.0)
    assert [b.seq for b in port.bulks] == [1, 1]
    drafting.receive(Ack(1, 64, 64, 64), 1.1)
    drafting.send([one, two], 1.2)
    assert [b.seq for b in port.bulks] == [1, 1, 1]
    drafting.receive(Unlinked("gone"), 1.3)
    drafting.receive(Linked(LINK, WELCOME), 1.4)
    drafting.send([one, two], 1.5)
    assert [b.start for b in port.bulks[3:]] == [0, 64], "a new link starts with an empty window"


def test_entries_wait_where_no_draft_is_made_from_them(port: Recorder) -> None:
    policy = DraftLengthPolicy(8)
    drafting = drafting_with(port, policy)
    drafting.receive(Linked(LINK, WELCOME), 0.0)
    batch = [decoding(150, seq) for seq in range(6)]
    for one in batch:
        drafting.open(one)
    policy.drafts = False
    drafting.send(batch, 1.0)
    assert not port.bulks
    drafting._feeds[3].wanted = True
    drafting.send(batch, 1.1)
    assert {bulk.seq for bulk in port.bulks} == {3}
    policy.drafts = True
    drafting.send(batch, 1.2)
    assert {bulk.seq for bulk in port.bulks} == set(range(6))


def test_a_need_is_followed_by_what_is_missing(drafting: Drafting, port: Recorder) -> None:
    drafting.receive(Linked(LINK, WELCOME), 0.0)
    one = decoding(9)
    drafting.open(one)
    drafting.send([one], 1.0)
    drafting.receive(answer(needs=(Need(1, 3, 8),)), 1.1)
    assert drafting.gathering.remaining(1.1) == 0
    one.commit([50], 0)
    drafting.send([one], 1.2)
    extend = port.rounds[-1][1][0]
    assert (extend.start, extend.tokens) == (3, (4, 5, 6, 7, 8, 50))


def test_a_late_draft_is_not_used_and_still_scored(drafting: Drafting, port: Recorder) -> None:
    drafting.receive(Linked(LINK, WELCOME), 0.0)
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


def test_drafts_are_cut_to_what_fits(drafting: Drafting) -> None:
    drafting.receive(Linked(LINK, WELCOME), 0.0)
    one = decoding(5, max_draft_tokens=2)
    drafting.open(one)
    drafting.send([one], 1.0)
    drafting.receive(answer(Draft(1, 4, (7, 8, 9, 10, 11))), 1.1)
    assert one.draft == (7, 8)


def test_a_sequence_that_wants_no_drafts_is_not_mentioned(
    drafting: Drafting, port: Recorder
) -> None:
    drafting.receive(Linked(LINK, WELCOME), 0.0)
    one = decoding(5, max_draft_tokens=0)
    drafting.open(one)
    drafting.send([one], 1.0)
    drafting.close(1)
    drafting.send([], 1.1)
    assert port.rounds == []


LOOKING = replace(WELCOME, lookup_match=3)


def test_lookups_are_asked_for_where_the_drafter_has_them(
    drafting: Drafting, port: Recorder
) -> None:
    one, two = decoding(5, 1), decoding(5, 2, max_draft_tokens=2)
    drafting.receive(Linked(LINK, LOOKING), 0.0)
    drafting.open(one)
    drafting.open(two)
    drafting.send([one, two], 1.0)
    assert [extend.wish for extend in port.rounds[-1][1]] == [Wish(3, 3), Wish(2, 2)]
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


def test_a_lookup_is_cut_to_what_fits_and_an_empty_one_is_a_miss(drafting: Drafting) -> None:
    one = decoding(5, max_draft_tokens=2)
    drafting.receive(Linked(LINK, LOOKING), 0.0)
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


def test_a_late_lookup_is_scored_as_one(drafting: Drafting) -> None:
    one = decoding(5)
    drafting.receive(Linked(LINK, LOOKING), 0.0)
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
    policy = DraftLengthPolicy(8, fixed=3)
    seen: list[int] = []
    monkeypatch.setattr(policy, "observe_draft", lambda length, *_, **__: seen.append(length))
    drafting = drafting_with(port, policy)
    one = decoding(5)
    drafting.receive(Linked(LINK, LOOKING), 0.0)
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
    policy = DraftLengthPolicy(8)
    drafting = drafting_with(port, policy)
    one = decoding(5)
    drafting.receive(Linked(LINK, LOOKING), 0.0)
    for _ in range(50):
        policy.step_cost.observe(1, 0.001)
        policy.observe_draft(1, 0.0007)
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
    assert wishes == [*[Wish(0, 1)] * 4, Wish(4, 0), Wish(0, 1)]


def test_without_drafts_nothing_is_sent(port: Recorder) -> None:
    """A draft length fixed at 0: entries too would only cost time."""
    drafting = drafting_with(port, DraftLengthPolicy(8, fixed=0))
    drafting.receive(Linked(LINK, WELCOME), 0.0)
    one = decoding(500)
    drafting.open(one)
    for _ in range(3):
        drafting.send([one], 1.0)
        one.commit([50], 0)
    assert not port.bulks
    assert not port.rounds


def test_the_policy_is_told_what_a_drafter_expects_of_itself(port: Recorder) -> None:
    policy = DraftLengthPolicy(8)
    drafting = drafting_with(port, policy)
    drafting.receive(Linked(LINK, replace(WELCOME, expected_acceptance=(0.25,))), 0.0)
    assert policy.new_record().chain.rates()[0] == 0.25
    drafting.receive(Unlinked("gone"), 1.0)
    drafting.receive(Linked(LINK, WELCOME), 2.0)
    assert policy.new_record().chain.rates()[0] == 0.5


def test_a_chain_is_cut_where_it_is_unsure_and_learned_from_as_a_whole(port: Recorder) -> None:
    policy = DraftLengthPolicy(8)
    drafting = drafting_with(port, policy)
    drafting.receive(Linked(LINK, WELCOME), 0.0)
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
    assert (learned[:2] > rates[:2]).all(), "the token after the last verified one is known too"
    drafting.observe(1)
    assert (drafting._feeds[1].record.chain.rates() == learned).all(), "a draft counts once"
