"""One sequence as far as its drafter is concerned. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from specwire.draft import NO_WISH, Draft, DraftSource, Welcome, Wish
from specwire.sequence import SequenceSender
from verifier_svc.record import Record
from verifier_svc.sequence import Sequence


@dataclass(slots=True)
class Feed:
    """What is known of a sequence's drafts, and what was asked last."""

    sequence: Sequence
    sender: SequenceSender
    record: Record
    # Entries that the drafter can take from the sequence that this one inherits from. The last
    # inherited position is none of them: its successor may be another.
    inherited: int = 0
    # False where features of early positions were captured from other layers than now.
    complete: bool = True
    asked: Wish = NO_WISH
    # Whether a draft has ever been wished for.
    wanted: bool = False

    def caps(self, welcome: Welcome) -> Wish:
        """The longest drafts that the sequence may use now."""
        sequence = self.sequence
        cap = min(
            sequence.generation.max_draft_tokens,
            welcome.max_draft_tokens,
            sequence.room_for_draft,
            welcome.max_length - sequence.entries,
        )
        cap = max(0, cap)
        return Wish(cap, cap if welcome.lookup_match else 0)

    def take(self, draft: Draft, welcome: Welcome) -> None:
        """Use an answer if it fits the committed length; score it if it came too late."""
        awaited = self.sender.outstanding
        fitting = self.sender.receive(draft)
        if awaited and not self.sender.outstanding and self.asked.lookup:
            found = draft.source is DraftSource.LOOKUP and bool(draft.tokens)
            self.record.observe_search(found)
        if fitting is not None:
            self.sequence.draft = fitting.tokens[: self.caps(welcome).chain]
            self.sequence.draft_source = fitting.source
        else:
            self._score_late(draft)

    def _score_late(self, draft: Draft) -> None:
        """A draft that came too late still tells how well its source guesses."""
        drawn = self.sequence.tokens[draft.base + 1 : draft.base + 1 + len(draft.tokens)]
        hits = 0
        for guess, token in zip(draft.tokens, drawn, strict=False):
            if guess != token:
                self.record.observe(draft.source, hits + 1, hits)
                return
            hits += 1
        self.record.observe(draft.source, hits, hits)
