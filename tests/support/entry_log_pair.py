"""A SequenceSender and a SequenceReceiver joined by a fake link that carries real entries."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TypeVar

from specwire.entry_log import EntryReceiver, EntrySender
from specwire.messages import CatchUpAck, Draft, DraftBudget, ResendFrom

SEQ = 7
T = TypeVar("T")


def payload(index: int) -> int:
    """The content of entry `index`: different for neighbours, so that a shift shows."""
    return index * 2654435761 % 1000003


def digest(entries: list[int]) -> int:
    """What the drafter makes of all its entries: a draft proves what it was made from."""
    return hash(tuple(entries)) % 2**31


@dataclass(frozen=True)
class Message:
    """Extend with its rows: entries [start, start + len(rows)) and a wish."""

    start: int
    rows: tuple[int, ...]
    wish: int = 0

    @property
    def stop(self) -> int:
        return self.start + len(self.rows)


@dataclass
class Holder:
    """One sequence in a drafter's memory."""

    receiver: EntryReceiver = field(default_factory=EntryReceiver)
    entries: list[int] = field(default_factory=list)
    wished: bool = False


def pop(queue: deque[T], at: int) -> T:
    message = queue[at]
    del queue[at]
    return message


class Pair:
    """Both ends of one sequence. Every message is delivered by a call, in any order.

    `rounds` and `answers` are the two directions of the round stream, `bulks` and `acks` of the
    bulk stream. Checks the invariants of the design after every call.
    """

    def __init__(self, round_rows: int = 4, bulk_rows: int = 3, window: int = 8) -> None:
        self.truth: list[int] = []
        self.sender = EntrySender(round_rows)
        self.holder = Holder()
        self.bulk_rows, self.window, self.in_window = bulk_rows, window, 0
        self.rounds: deque[Message] = deque()
        self.bulks: deque[Message] = deque()
        self.answers: deque[Draft | ResendFrom] = deque()
        self.acks: deque[CatchUpAck] = deque()
        self.usable: Draft | None = None
        self.used = 0
        self.needs = 0

    def commit(self, entries: int) -> None:
        """The verifier commits: the truth grows, whatever draft there was is spent."""
        self.truth += (payload(i) for i in range(len(self.truth), len(self.truth) + entries))
        self.usable = None
        self.sender.commit(len(self.truth))
        self.check()

    def send(self, wish: int = 3) -> bool:
        """What the verifier sends after a step; whether a draft was asked for."""
        while self.in_window + self.bulk_rows <= self.window:
            span = self.sender.next_bulk(self.bulk_rows)
            if span is None:
                break
            assert 0 < len(span) <= self.bulk_rows
            self.in_window += len(span)
            self.bulks.append(Message(span.start, self._rows(span.start, span.stop)))
        span = self.sender.next_round() if wish and self.usable is None else None
        if span is not None:
            assert span.stop == len(self.truth), "a draft is asked for at the newest base only"
            self.rounds.append(Message(span.start, self._rows(span.start, span.stop), wish))
        self.check()
        return span is not None

    def _rows(self, start: int, stop: int) -> tuple[int, ...]:
        assert stop <= len(self.truth), "only real entries travel"
        return tuple(self.truth[start:stop])

    def take_round(self, at: int = 0) -> None:
        """A round reaches the drafter."""
        message = pop(self.rounds, at)
        if self._apply(message):
            self.holder.wished |= message.wish > 0
        else:
            self.answers.append(ResendFrom(SEQ, self.holder.receiver.real_len, message.stop))
        self.check()

    def take_bulk(self, at: int = 0) -> None:
        """A bulk message reaches the drafter."""
        message = pop(self.bulks, at)
        self._apply(message)
        real_len = self.holder.receiver.real_len
        self.acks.append(CatchUpAck(SEQ, real_len, message.stop, len(message.rows)))
        self.check()

    def _apply(self, message: Message) -> bool:
        holder = self.holder
        before = holder.receiver.real_len
        fresh = holder.receiver.extend(message.start, message.stop, DraftBudget(message.wish))
        assert holder.receiver.real_len >= before, "real_len never falls"
        if fresh is None:
            assert message.start > before, "only a gap is refused"
            return False
        assert fresh.start == before
        holder.entries += message.rows[fresh.start - message.start :]
        return True

    def run(self) -> None:
        """The drafter answers what was wished for, at the newest base."""
        wish = self.holder.receiver.take_request()
        if wish is not None:
            base = self.holder.receiver.real_len
            self.answers.append(Draft(SEQ, base, (digest(self.holder.entries),) * wish.chain))
        self.holder.wished = False
        self.check()

    def take_answer(self, at: int = 0) -> Draft | None:
        """An answer reaches the verifier; returns the draft if it can be used."""
        answer = pop(self.answers, at)
        if isinstance(answer, ResendFrom):
            self.needs += 1
            self.sender.need(answer)
        else:
            draft = self.sender.receive(answer)
            if draft is not None:
                assert draft.base == len(self.truth), "a draft is used at its own base only"
                assert draft.tokens[0] == digest(self.truth), "it was made from the true entries"
                self.usable = draft
                self.used += 1
        self.check()
        return self.usable

    def take_ack(self, at: int = 0) -> None:
        """An acknowledgement reaches the verifier."""
        ack = pop(self.acks, at)
        self.in_window -= ack.rows
        self.sender.acknowledge(ack)
        self.check()

    def evict(self) -> None:
        """The drafter drops the sequence between rounds; the link stays."""
        self.run()
        self.holder = Holder()
        self.check()

    def reset(self) -> None:
        """The link is lost with all that was in flight, and the drafter starts anew."""
        for queue in (self.rounds, self.bulks, self.answers, self.acks):
            queue.clear()
        self.holder, self.usable, self.in_window = Holder(), None, 0
        self.sender.reset()
        self.check()

    def drain(self) -> None:
        """Deliver all that is in flight, and what comes of it."""
        while self.rounds or self.bulks or self.answers or self.acks or self.holder.wished:
            while self.bulks:
                self.take_bulk()
            while self.rounds:
                self.take_round()
            self.run()
            while self.acks:
                self.take_ack()
            while self.answers:
                self.take_answer()

    def settle(self) -> None:
        """With no more faults, a draft is obtained."""
        # Each turn moves a window of rows, or ends a refusal.
        for _ in range(len(self.truth) // self.bulk_rows + 8):
            self.drain()
            if self.usable is not None:
                return
            self.send()
        raise AssertionError("no draft is obtained though nothing is lost any more")

    @property
    def requests_in_flight(self) -> int:
        return sum(m.wish > 0 for m in self.rounds) + self.holder.wished + len(self.answers)

    def check(self) -> None:
        """The invariants that hold whatever the link does."""
        assert self.holder.receiver.real_len == len(self.holder.entries)
        assert self.holder.entries == self.truth[: len(self.holder.entries)]
