"""Which entries of which sequences are held. Pure: no torch, no grpc, no clock."""

from dataclasses import dataclass, field

from specwire.draft import Extend, Need, Opening
from specwire.sequence import SequenceReceiver, Span

#: A sequence among all verifiers: link id and sequence id.
Key = tuple[int, int]


@dataclass(slots=True, eq=False)
class Held:
    """One sequence. A refused one is never served again; its requests get empty drafts."""

    key: Key
    opening: Opening
    receiver: SequenceReceiver = field(default_factory=SequenceReceiver)
    refused: bool = False


class Sequences:
    """The sequences of all links, by link id and sequence id."""

    def __init__(self, per_link: int, max_length: int) -> None:
        """Take how many sequences a link may hold, and how many entries a sequence."""
        self._per_link = per_link
        self._max_length = max_length
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
            held = Held((link, message.seq), message.opening)
            if len(self._links[link]) < self._per_link:
                self._links[link][message.seq] = held
            else:
                held.refused = True
        if message.stop > self._max_length:
            held.refused = True
        if held.refused:
            return held, Span(message.stop, message.stop)
        span = held.receiver.extend(message.start, message.stop, message.draft_tokens)
        if span is None:
            return Need(message.seq, held.receiver.real_len, message.stop)
        return held, span

    def drop(self, key: Key) -> None:
        """A sequence has ended or was evicted; dropping an unknown one is no error."""
        link, seq = key
        self._links.get(link, {}).pop(seq, None)
