"""Which entries of which sequences are held. Pure: no torch, no grpc, no clock."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from drafter_svc.inference.ngram_lookup import SuffixIndex
from drafter_svc.inference.sequence_key import Key
from specwire.entry_log import EntryReceiver, EntrySpan
from specwire.messages import AppendEntries, ResendFrom, SequenceContext


@dataclass(slots=True, eq=False)
class DrafterSequence:
    """One sequence. A refused one is never served again; its requests get empty drafts.

    ``tokens`` are the first one and that of every entry; ``index`` knows the same, and is None
    without lookups. The first entries of a new one may be those of ``source``.
    """

    key: Key
    opening: SequenceContext
    tokens: list[int]
    index: SuffixIndex | None = None
    receiver: EntryReceiver = field(default_factory=EntryReceiver)
    refused: bool = False
    source: Key | None = None

    def append(self, tokens: Sequence[int]) -> None:
        """Take the tokens of entries."""
        self.tokens += tokens
        if self.index is not None:
            self.index.extend(tokens)


@dataclass(slots=True)
class _Link:
    """A verifier's sequences: those that run, and those that others may still inherit from."""

    running: dict[int, DrafterSequence] = field(default_factory=dict)
    ended: dict[int, DrafterSequence] = field(default_factory=dict)


class SequenceTable:
    """The sequences of all links, by link id and sequence id."""

    def __init__(self, per_link: int, max_length: int, lookup_match: int = 0) -> None:
        """Take the limits.

        A link may run ``per_link`` sequences, a sequence hold ``max_length`` entries. A repeated
        suffix of ``lookup_match`` tokens can be looked up; 0 indexes nothing.
        """
        self._per_link = per_link
        self._max_length = max_length
        self._lookup_match = lookup_match
        self._links: dict[int, _Link] = {}

    def __len__(self) -> int:
        return sum(len(link.running) for link in self._links.values())

    @property
    def links(self) -> int:
        """Verifiers connected."""
        return len(self._links)

    def open_link(self, link: int) -> None:
        """A verifier is there, with no sequence yet."""
        self._links[link] = _Link()

    def close_link(self, link: int) -> list[Key]:
        """A verifier is gone. Returns the sequences that it had."""
        gone = self._links.pop(link, _Link())
        return [held.key for held in (*gone.running.values(), *gone.ended.values())]

    def has_link(self, link: int) -> bool:
        """Whether the link is open."""
        return link in self._links

    def extend(
        self, link: int, message: AppendEntries
    ) -> tuple[DrafterSequence, EntrySpan] | ResendFrom:
        """Take entries of an open link.

        Returns the sequence with the entries that are new, or the Need that answers a gap. A
        sequence that is longer than allowed, or one too many for its link, comes back refused.
        """
        held = self._links[link].running.get(message.seq) or self._open(link, message)
        if isinstance(held, ResendFrom):
            return held
        if message.stop > self._max_length:
            held.refused = True
        if held.refused:
            return held, EntrySpan(message.stop, message.stop)
        span = held.receiver.extend(message.start, message.stop, message.wish)
        if span is None:
            return ResendFrom(message.seq, held.receiver.real_len, message.stop)
        held.append(message.tokens[span.start - message.start :])
        return held, span

    def end(self, key: Key) -> bool:
        """A sequence has ended. Returns whether others may inherit from it until it is dropped."""
        link, seq = key
        known = self._links.get(link, _Link())
        held = known.running.pop(seq, None)
        if held is None or held.refused:
            return False
        held.index = None
        known.ended[seq] = held
        return True

    def drop(self, key: Key) -> None:
        """Forget a sequence; dropping an unknown one is no error."""
        link, seq = key
        known = self._links.get(link, _Link())
        known.running.pop(seq, None)
        known.ended.pop(seq, None)

    def _open(self, link: int, message: AppendEntries) -> DrafterSequence | ResendFrom:
        """Open the sequence of a message, which may begin with entries of another one."""
        known, opening = self._links[link], message.opening
        if opening is None:
            return ResendFrom(message.seq, 0, message.stop)
        source = known.running.get(opening.source) or known.ended.get(opening.source)
        count = 0
        if source is not None and not source.refused:
            count = min(opening.inherited, source.receiver.real_len)
        if message.start > count:
            return ResendFrom(message.seq, count, message.stop)
        index = SuffixIndex(self._lookup_match) if self._lookup_match else None
        held = DrafterSequence((link, message.seq), opening, [], index, EntryReceiver(count))
        held.append([opening.first_token])
        if source is not None and count:
            held.source = source.key
            held.append(source.tokens[1 : count + 1])
        if len(known.running) < self._per_link:
            known.ended.pop(message.seq, None)
            known.running[message.seq] = held
        else:
            held.refused = True
        return held
