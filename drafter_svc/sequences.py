"""Which entries of which sequences are held. Pure: no torch, no grpc, no clock."""

from dataclasses import dataclass, field

from drafter_svc.lookup import SuffixIndex
from specwire.draft import Extend, Need, Opening
from specwire.sequence import SequenceReceiver, Span

#: A sequence among all verifiers: link id and sequence id.
Key = tuple[int, int]


@dataclass(slots=True, eq=False)
class Held:
    """One sequence. A refused one is never served again; its requests get empty drafts.

    ``index`` knows the token of every entry and the one before them; None without lookups.
    """

    key: Key
    opening: Opening
    index: SuffixIndex | None = None
    receiver: SequenceReceiver = field(default_factory=SequenceReceiver)
    refused: bool = False


class Sequences:
    """The sequences of all links, by link id and sequence id."""

    def __init__(self, per_link: int, max_length: int, lookup_match: int = 0) -> None:
        """Take the limits.

        A link may hold ``per_link`` sequences, a sequence ``max_length`` entries. A repeated
        suffix of ``lookup_match`` tokens can be looked up; 0 indexes nothing.
        """
        self._per_link = per_link
        self._max_length = max_length
        self._lookup_match = lookup_match
        self._links: dict[int, dict[int, Held]] = {}

    def __len__(self) -> int:
        return sum(len(link) for link in self._links.values())

    def open_link(self, link: int) -> None:
        """A verifier is there, with no sequence yet."""
        self._links[link] = {}

    def close_link(self, link: int) -> list[Key]:
        """A verifier is gone. Returns the sequences that it had."""
        return [held.key for held in self._links.pop(link, {}).values()]

    def has_link(self, link: int) -> bool:
        """Whether the link is open."""
        return link in self._links

    def extend(self, link: int, message: Extend) -> tuple[Held, Span] | Need:
        """Take entries of an open link.

        Returns the sequence with the entries that are new, or the Need that answers a gap. A
        sequence that is longer than allowed, or one too many for its link, comes back refused.
        """
        held = self._links[link].get(message.seq)
        if held is None:
            if message.start or message.opening is None:
                return Need(message.seq, 0, message.stop)
            held = self._open((link, message.seq), message.opening)
            if len(self._links[link]) < self._per_link:
                self._links[link][message.seq] = held
            else:
                held.refused = True
        if message.stop > self._max_length:
            held.refused = True
        if held.refused:
            return held, Span(message.stop, message.stop)
        span = held.receiver.extend(message.start, message.stop, message.wish)
        if span is None:
            return Need(message.seq, held.receiver.real_len, message.stop)
        if held.index is not None:
            held.index.extend(message.tokens[span.start - message.start :])
        return held, span

    def _open(self, key: Key, opening: Opening) -> Held:
        if not self._lookup_match:
            return Held(key, opening)
        index = SuffixIndex(self._lookup_match)
        index.extend([opening.first_token])
        return Held(key, opening, index)

    def drop(self, key: Key) -> None:
        """A sequence has ended or was evicted; dropping an unknown one is no error."""
        link, seq = key
        self._links.get(link, {}).pop(seq, None)
