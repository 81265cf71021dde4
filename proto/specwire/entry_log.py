"""The two ends of a sequence: which entries travel, and which drafts still fit.

Pure: no torch, no grpc, no clock. Entries are defined in `specwire.messages`. These rules hold
under loss, duplication and reordering of messages:

- entries arrive by append only: a message that starts beyond the end is answered by Need,
  one that starts before it has its duplicates skipped, and `real_len` never falls;
- at most one draft request of a sequence is outstanding;
- a draft is used only at the length that it was made for.
"""

from __future__ import annotations

from dataclasses import dataclass

from specwire.messages import NO_DRAFT, CatchUpAck, Draft, DraftBudget, ResendFrom


@dataclass(frozen=True, slots=True)
class EntrySpan:
    """Entries [start, stop)."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class EntrySender:
    """What a verifier knows of one sequence at its drafter.

    Entries travel with the round that asks for a draft, except a lag of more than
    `round_rows`, which goes ahead by bulk; a round is sent once all of that is acknowledged.
    """

    def __init__(self, round_rows: int, inherited: int = 0) -> None:
        """Take what a round may carry, and the entries that the drafter can take from elsewhere."""
        self._round_rows = round_rows
        self._entries = inherited
        self._sent = inherited
        self._held = 0
        self._bulk_stop = 0
        self._outstanding: int | None = None

    @property
    def entries(self) -> int:
        """Entries that are real."""
        return self._entries

    @property
    def sent(self) -> int:
        """Entries that need not be sent any more."""
        return self._sent

    @property
    def outstanding(self) -> bool:
        """Whether a draft request waits for its answer."""
        return self._outstanding is not None

    @property
    def lags(self) -> bool:
        """Whether there are entries that a round does not carry."""
        return self._entries - self._sent > self._round_rows or self._sent < self._bulk_stop

    @property
    def ready(self) -> bool:
        """Whether a draft request may be made now."""
        if self._outstanding is not None or not self._entries:
            return False
        lag = self._entries - self._sent
        return lag <= self._round_rows and min(self._sent, self._held) >= self._bulk_stop

    def commit(self, entries: int) -> None:
        """Entries [0, entries) are real now.

        Raises:
            ValueError: fewer than before; committed tokens are never taken back.
        """
        if entries < self._entries:
            raise ValueError(f"{entries} entries are fewer than the {self._entries} committed.")
        self._entries = entries

    def next_bulk(self, limit: int) -> EntrySpan | None:
        """The next entries to send by bulk, at most `limit`; None if a round carries the lag."""
        if self._entries - self._sent > self._round_rows:
            self._bulk_stop = self._entries
        if self._sent >= self._bulk_stop:
            return None
        span = EntrySpan(self._sent, min(self._sent + limit, self._bulk_stop))
        self._sent = span.stop
        return span

    def next_round(self) -> EntrySpan | None:
        """The entries to send with a draft request now; None where none may be made.

        The request is outstanding from now on, at base `stop`.
        """
        if not self.ready:
            return None
        span = EntrySpan(self._sent, self._entries)
        self._sent = self._outstanding = span.stop
        return span

    def acknowledge(self, ack: CatchUpAck) -> None:
        """A bulk message was applied, or refused for the gap before it."""
        if ack.real_len < ack.stop:
            self._rewind(ack.real_len)
        else:
            self._held = max(self._held, min(ack.real_len, self._sent))

    def receive(self, draft: Draft) -> Draft | None:
        """Take an answer; return it if it fits the committed length, else None."""
        if self._outstanding is None or draft.base < self._outstanding:
            return None
        self._outstanding = None
        self._held = max(self._held, min(draft.base, self._sent))
        return draft if draft.base == self._entries else None

    def need(self, need: ResendFrom) -> None:
        """The drafter has less than a round assumed: the next messages start from there."""
        if self._outstanding is not None and need.base >= self._outstanding:
            self._outstanding = None
            self._rewind(need.real_len)

    def reset(self) -> None:
        """Another drafter, or the same one anew: it holds nothing."""
        self._outstanding = None
        self._rewind(0)

    def _rewind(self, real_len: int) -> None:
        self._sent = min(self._sent, real_len)
        self._held = min(self._held, real_len)
        self._bulk_stop = min(self._bulk_stop, real_len)


class EntryReceiver:
    """What a drafter holds of one sequence. Its guesses are scratch behind `real_len`."""

    def __init__(self, inherited: int = 0) -> None:
        """Take the entries that are held from the start."""
        self._real_len = inherited
        self._wish = NO_DRAFT

    @property
    def real_len(self) -> int:
        """Entries held; never falls."""
        return self._real_len

    def extend(self, start: int, stop: int, wish: DraftBudget = NO_DRAFT) -> EntrySpan | None:
        """Take entries [start, stop) and a wish for a draft after them.

        Returns the entries that are new, possibly none, or None if the message leaves a gap:
        then answer Need(real_len).
        """
        if start > self._real_len:
            return None
        fresh = EntrySpan(self._real_len, max(self._real_len, stop))
        self._real_len = fresh.stop
        self._wish = wish or self._wish
        return fresh

    def take_request(self) -> DraftBudget | None:
        """What to propose at `real_len` now, once for all wishes; None for nothing.

        A wish whose base has been passed is answered at the newest base too: its sender makes
        no other request before the answer.
        """
        wish, self._wish = self._wish, NO_DRAFT
        return wish or None
