"""One sequence as far as its drafter is concerned. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from specwire.entry_log import EntrySender, EntrySpan
from specwire.messages import (
    NO_DRAFT,
    AppendEntries,
    Draft,
    DraftBudget,
    DrafterInfo,
    DraftSource,
    SequenceContext,
)
from verifier_svc.draft_length.acceptance_model import AcceptanceStats
from verifier_svc.request.sequence import Sequence

# The most rows that a round carries.
ROUND_ROWS = 32
# Tokens that a text is expected to have at least.
_SHORT = 8


@dataclass(slots=True)
class DraftStream:
    """What is known of a sequence's drafts, and what was asked last."""

    sequence: Sequence
    sender: EntrySender
    record: AcceptanceStats
    # Entries that the drafter can take from the sequence that this one inherits from. The last
    # inherited position is none of them: its successor may be another.
    inherited: int = 0
    # False where features of early positions were captured from other layers than now.
    complete: bool = True
    asked: DraftBudget = NO_DRAFT
    # Whether a draft has ever been wished for.
    wanted: bool = False
    # Whether drafts are worth the rows that they need.
    affordable: bool = True
    # The draft of the next round, as it came.
    proposed: Draft | None = None

    @property
    def lacks(self) -> int:
        """Rows, those of its whole prompt, that the drafter must be sent ahead of a round."""
        rows = len(self.sequence.tokens) - 1 - self.sender.sent
        return rows if rows > ROUND_ROWS else 0

    @property
    def remaining(self) -> int:
        """Tokens that are expected to come: as many as came so far, within the limit."""
        sequence = self.sequence
        so_far = len(sequence) - sequence.output_start
        return min(max(so_far, _SHORT), sequence.limit - len(sequence))

    def caps(self, welcome: DrafterInfo, most: int) -> DraftBudget:
        """The longest drafts that the sequence may use now, which are none over `most`."""
        cap = self._cap(welcome, most)
        return DraftBudget(cap, cap if welcome.lookup_match else 0)

    def _cap(self, welcome: DrafterInfo, most: int) -> int:
        sequence = self.sequence
        cap = min(
            sequence.generation.max_draft_tokens,
            most,
            # Room for all of them and the bonus token.
            sequence.limit - len(sequence.tokens) - 1,
            welcome.max_length - sequence.entries,
        )
        return max(cap, 0)

    def extend(self, span: EntrySpan, wish: DraftBudget = NO_DRAFT) -> AppendEntries:
        """The message of these entries, and of a wish for a draft after them."""
        tokens = tuple(self.sequence.tokens[span.start + 1 : span.stop + 1])
        opening = self._opening() if span.start <= self.inherited else None
        return AppendEntries(self.sequence.id, span.start, tokens, wish, opening)

    def _opening(self) -> SequenceContext:
        sequence, sampling = self.sequence, self.sequence.sampling
        return SequenceContext(
            first_token=sequence.tokens[0],
            output_start=sequence.output_start,
            seed=sampling.seed,
            choice_index=sequence.generation.choice_index,
            temperature=sampling.temperature,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logit_bias=sampling.logit_bias,
            source=sequence.inherited.source if sequence.inherited else 0,
            inherited=self.inherited,
        )

    def take(self, draft: Draft, welcome: DrafterInfo, price: float) -> None:
        """Use an answer if it fits the committed length; score it if it came too late.

        Of a chain as much is used as promises more than `price` tokens a row.
        """
        awaited = self.sender.outstanding
        fitting = self.sender.receive(draft)
        if awaited and not self.sender.outstanding and self.asked.lookup:
            found = draft.source is DraftSource.LOOKUP and bool(draft.tokens)
            self.record.observe_search(found)
        if fitting is None:
            self._score(draft)
            return
        self.proposed = fitting
        length = self._cap(welcome, welcome.max_draft_tokens)
        if fitting.confidence:  # that of a chain
            length = min(length, self.record.calibration.kept(fitting.confidence, price))
        self.sequence.draft = fitting.tokens[:length]
        self.sequence.draft_source = fitting.source

    def score(self) -> None:
        """A round is committed: learn from its draft, what was cut off included."""
        if self.proposed is not None:
            self._score(self.proposed)
            self.proposed = None

    def _score(self, draft: Draft) -> None:
        """Compare a draft with what was committed in its place, however far that goes."""
        drawn = self.sequence.tokens[draft.base + 1 : draft.base + 1 + len(draft.tokens)]
        accepted = 0
        for guess, token in zip(draft.tokens, drawn, strict=False):
            if guess != token:
                break
            accepted += 1
        tried = min(accepted + 1, len(drawn))
        self.record.observe(draft.source, tried, accepted, draft.confidence)
