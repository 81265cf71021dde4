"""Both ends of a sequence over a fake link: scripts, and arbitrary schedules by hypothesis."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from specwire.entry_log import EntryReceiver, EntrySender, EntrySpan
from specwire.messages import CatchUpAck, Draft, DraftBudget, ResendFrom
from tests.support.entry_log_pair import SEQ, Pair


def round_trip(pair: Pair, wish: int = 3) -> Draft:
    """One round without faults, after which a draft can be used."""
    assert pair.send(wish)
    pair.take_round()
    pair.run()
    draft = pair.take_answer()
    assert draft is not None
    return draft


def started(entries: int = 3) -> Pair:
    pair = Pair()
    pair.commit(entries)
    return pair


def test_every_draft_is_accepted() -> None:
    pair = started()
    for _ in range(10):
        draft = round_trip(pair, 3)
        assert len(draft.tokens) == 3
        pair.commit(3 + 1)
    assert pair.used == 10
    assert pair.holder.receiver.real_len == len(pair.truth) - 4


@pytest.mark.parametrize("accepted", [0, 1, 2, 3])
def test_a_draft_is_rejected_at_each_position(accepted: int) -> None:
    pair = started()
    for _ in range(5):
        round_trip(pair, 3)
        pair.commit(accepted + 1)
        assert pair.send(3), "the next request follows at once"
        assert len(pair.rounds[-1].rows) == accepted + 1, "every real entry travels exactly once"
        pair.settle()
        pair.commit(1)
    assert pair.needs == 0


def test_a_late_draft_is_dropped_and_no_second_request_is_made_before_it() -> None:
    pair = started()
    assert pair.send()
    pair.take_round()
    pair.run()
    pair.commit(1)  # the deadline passed: a plain round
    assert pair.sender.outstanding
    assert not pair.send()
    assert pair.take_answer() is None
    assert pair.used == 0
    assert not pair.sender.outstanding
    assert round_trip(pair).base == 4


def test_a_lost_link_starts_over_with_a_new_drafter() -> None:
    pair = started()
    round_trip(pair)
    pair.commit(2)
    assert pair.send()
    pair.reset()
    assert not pair.sender.outstanding
    pair.settle()
    assert pair.holder.entries == pair.truth


@pytest.mark.parametrize("stream", ["rounds", "answers"])
def test_a_duplicate_changes_nothing(stream: str) -> None:
    pair = started()
    assert pair.send()
    if stream == "rounds":
        pair.rounds.append(pair.rounds[0])
        pair.take_round()
        pair.run()
    else:
        pair.take_round()
        pair.run()
        pair.answers.append(pair.answers[0])
    assert pair.take_answer() is not None
    pair.commit(1)
    pair.drain()
    assert pair.used == 1
    assert round_trip(pair).base == 4


def test_a_duplicated_bulk_message_is_skipped() -> None:
    pair = started(7)
    pair.send()
    pair.bulks.append(pair.bulks[0])
    pair.in_window += len(pair.bulks[0].rows)
    pair.settle()
    assert pair.needs == 0


def test_reordered_bulk_messages_are_refused_for_the_gap_and_sent_again() -> None:
    pair = Pair(bulk_rows=3, window=100)
    pair.commit(9)
    pair.send()
    assert len(pair.bulks) == 3
    pair.take_bulk(2)
    assert pair.acks[-1] == CatchUpAck(SEQ, real_len=0, stop=9, rows=3)
    pair.settle()
    assert pair.holder.entries == pair.truth


def test_an_evicted_sequence_is_asked_for_from_its_start() -> None:
    pair = started()
    round_trip(pair)
    pair.commit(1)
    pair.evict()
    assert pair.send()
    pair.take_round()
    assert pair.answers[-1] == ResendFrom(SEQ, real_len=0, base=4)
    pair.take_answer()
    assert pair.send()
    assert pair.rounds[-1].start == 0
    pair.settle()
    assert pair.needs == 1


def test_a_wish_that_bulk_rows_overtook_is_answered_at_the_newest_base() -> None:
    """The two streams race: rows beyond the request arrive before the request does."""
    pair = started()
    round_trip(pair)
    pair.commit(1)
    assert pair.send()  # the round [3, 4) stays on its way
    pair.commit(5)
    pair.send()
    pair.take_bulk()
    pair.take_ack()  # refused for the gap: all is sent again by bulk
    pair.send()
    while pair.bulks:
        pair.take_bulk()
    assert pair.holder.receiver.real_len > 4, "bulk rows passed the round"
    pair.take_round()
    pair.run()
    assert len(pair.answers) == 1, "the verifier waits for an answer to every request"
    pair.settle()


def test_extends_that_queued_up_fold_into_one_draft_at_the_newest_base() -> None:
    receiver = EntryReceiver()
    assert receiver.extend(0, 3, DraftBudget(2, 7)) == EntrySpan(0, 3)
    assert receiver.extend(3, 5) == EntrySpan(3, 5)
    assert receiver.extend(5, 6, DraftBudget(4, 1)) == EntrySpan(5, 6)
    assert receiver.take_request() == DraftBudget(4, 1)
    assert receiver.take_request() is None, "one answer for all of them"
    assert receiver.real_len == 6


def test_a_folded_answer_settles_the_request_before_it() -> None:
    sender = EntrySender(4)
    sender.commit(3)
    assert sender.next_round() == EntrySpan(0, 3)
    sender.commit(5)
    draft = Draft(SEQ, 5, (1,))
    assert sender.receive(draft) is draft
    assert not sender.outstanding


def test_a_receiver_skips_what_it_holds() -> None:
    receiver = EntryReceiver()
    receiver.extend(0, 5)
    assert receiver.extend(2, 7) == EntrySpan(5, 7)
    assert receiver.extend(0, 3) == EntrySpan(7, 7)
    assert receiver.extend(8, 9) is None
    assert receiver.real_len == 7


def test_rounds_without_drafts_send_nothing_and_the_next_one_catches_up() -> None:
    pair = started()
    round_trip(pair)
    for _ in range(4):
        pair.commit(1)
        assert not pair.send(0)
        assert not pair.bulks
    assert pair.send(2)
    assert pair.rounds[-1].rows == tuple(pair.truth[3:7])
    pair.settle()


def test_a_lag_beyond_a_round_goes_by_bulk_and_holds_the_round_back() -> None:
    pair = started()
    round_trip(pair)
    pair.commit(5)
    assert not pair.send()
    assert [len(m.rows) for m in pair.bulks] == [3, 2]
    pair.take_bulk()
    pair.take_ack()
    assert not pair.send(), "one of the bulk messages is not acknowledged"
    pair.take_bulk()
    pair.take_ack()
    assert pair.send()
    assert pair.rounds[-1].rows == ()
    pair.settle()


def test_rows_committed_meanwhile_travel_with_the_round() -> None:
    pair = started(6)
    assert not pair.send()
    pair.commit(2)
    pair.send()
    while pair.bulks:
        pair.take_bulk()
        pair.take_ack()
    assert pair.send()
    assert pair.rounds[-1].rows == tuple(pair.truth[6:8])


def test_the_window_bounds_the_rows_in_flight() -> None:
    pair = Pair(bulk_rows=3, window=8)
    pair.commit(50)
    for _ in range(3):
        pair.send()
        assert pair.in_window == 6
    pair.settle()
    assert pair.holder.entries == pair.truth


def test_the_end_of_a_sequence_inside_a_draft() -> None:
    """Fewer tokens are committed than were accepted: the entries simply end."""
    pair = started()
    round_trip(pair, 3)
    pair.commit(2)
    assert pair.send(0) is False
    assert len(pair.holder.entries) == 3
    assert pair.sender.entries == 5


def test_a_full_context_ends_the_requests_and_nothing_else() -> None:
    """A drafter's context is shorter than the target's: wishes end, commits go on."""
    limit = 12
    pair = started()
    while len(pair.truth) < 20:
        wish = min(3, max(0, limit - len(pair.truth)))
        if pair.send(wish):
            pair.drain()
        pair.commit(2)
    assert len(pair.holder.entries) <= limit
    assert pair.used == 5


def test_commits_are_never_taken_back() -> None:
    sender = EntrySender(4)
    sender.commit(3)
    with pytest.raises(ValueError, match="fewer"):
        sender.commit(2)


def test_answers_that_nobody_asked_for_are_dropped() -> None:
    sender = EntrySender(4)
    sender.commit(3)
    assert sender.receive(Draft(SEQ, 3, (1,))) is None
    sender.need(ResendFrom(SEQ, 0, 3))
    assert sender.next_round() == EntrySpan(0, 3)
    assert sender.receive(Draft(SEQ, 2, (1,))) is None
    sender.need(ResendFrom(SEQ, 0, 2))
    assert sender.outstanding, "an answer to an earlier base is not the one that is due"


SCRIPT = [
    *("commit", "send", "take_round", "run", "take_answer"),
    *("commit6", "send", "take_bulk", "take_bulk", "take_ack", "take_ack"),
    *("send", "take_round", "run", "take_answer"),
    *("commit", "send", "evict", "take_round", "take_answer", "send", "take_bulk", "take_ack"),
]


@pytest.mark.parametrize("point", range(len(SCRIPT) + 1))
def test_cancel_at_every_point(point: int) -> None:
    """The verifier forgets the sequence; all that is still on its way meets an empty drafter."""
    pair = Pair()
    for name in SCRIPT[:point]:
        if name.startswith("commit"):
            pair.commit(int(name[6:] or 3))
        else:
            getattr(pair, name)()
    pair.holder = type(pair.holder)()  # the Close arrives at once
    answered = len(pair.rounds) + len(pair.bulks)
    while pair.rounds:
        pair.take_round()
    while pair.bulks:
        pair.take_bulk()
    pair.run()
    assert len(pair.answers) + len(pair.acks) >= answered, "every message is answered"


class InOrder(RuleBasedStateMachine):
    """Two streams that deliver in order and lose nothing but everything at once, as gRPC does."""

    @initialize(rows=st.integers(1, 5), bulk=st.integers(1, 4), spare=st.integers(0, 30))
    def open(self, rows: int, bulk: int, spare: int) -> None:
        self.pair = Pair(rows, bulk, bulk + spare)

    @rule(entries=st.integers(1, 9), wish=st.sampled_from([0, 3, 3]))
    def step(self, entries: int, wish: int) -> None:
        self.pair.commit(entries)
        self.pair.send(wish)

    @rule(count=st.integers(1, 6))
    def take_rounds(self, count: int) -> None:
        for _ in range(min(count, len(self.pair.rounds))):
            self.pair.take_round()

    @rule(count=st.integers(1, 6))
    def take_bulks(self, count: int) -> None:
        for _ in range(min(count, len(self.pair.bulks))):
            self.pair.take_bulk()

    @rule()
    def run_drafter(self) -> None:
        self.pair.run()

    @rule(answers=st.booleans(), acks=st.integers(0, 6))
    def receive(self, answers: bool, acks: int) -> None:
        if answers and self.pair.answers:
            self.pair.take_answer()
        for _ in range(min(acks, len(self.pair.acks))):
            self.pair.take_ack()

    @rule(fault=st.sampled_from(["evict", "reset", *["none"] * 6]))
    def break_something(self, fault: str) -> None:
        if fault != "none":
            getattr(self.pair, fault)()

    @invariant()
    def at_most_one_request_is_outstanding(self) -> None:
        if hasattr(self, "pair"):
            assert self.pair.requests_in_flight == self.pair.sender.outstanding

    def teardown(self) -> None:
        if hasattr(self, "pair"):
            self.pair.commit(1)
            self.pair.settle()


class Disorder(RuleBasedStateMachine):
    """Messages are lost, doubled and reordered one by one: drafts may stop, nothing is wrong."""

    @initialize(rows=st.integers(1, 6), bulk=st.integers(1, 4))
    def open(self, rows: int, bulk: int) -> None:
        self.pair = Pair(rows, bulk, window=1000)

    @rule(entries=st.integers(1, 12), wish=st.sampled_from([0, 3]))
    def step(self, entries: int, wish: int) -> None:
        self.pair.commit(entries)
        self.pair.send(wish)

    @rule(
        stream=st.sampled_from(["round", "bulk", "answer", "ack"]),
        at=st.integers(0, 7),
        fate=st.sampled_from(["deliver", "deliver", "double", "lose"]),
    )
    def handle(self, stream: str, at: int, fate: str) -> None:
        queue = getattr(self.pair, stream + "s")
        if not queue:
            return
        at %= len(queue)
        if fate == "lose":
            del queue[at]
        elif fate == "double":
            queue.append(queue[at])
        else:
            getattr(self.pair, "take_" + stream)(at)

    @rule()
    def run_drafter(self) -> None:
        self.pair.run()

    @rule()
    def evict(self) -> None:
        self.pair.evict()

    def teardown(self) -> None:
        if hasattr(self, "pair"):
            self.pair.reset()
            self.pair.commit(1)
            self.pair.settle()


TestInOrder = InOrder.TestCase
TestInOrder.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestDisorder = Disorder.TestCase
TestDisorder.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
