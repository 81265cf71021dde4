"""What the engine hands to a worker, and what it gets back."""

from dataclasses import dataclass, field, replace

from torch import Tensor

from specwire.messages import AppendEntries, Draft, ResendFrom


@dataclass(frozen=True, slots=True)
class RoundMessage:
    """One round of one link; ``features`` are the rows of all ``extends`` in order, if any."""

    link: int
    extends: tuple[AppendEntries, ...]
    features: Tensor | None
    closes: tuple[int, ...]
    received: float


@dataclass(frozen=True, slots=True)
class BulkMessage:
    """Rows beyond a round's worth, or a piece of them. The Ack tells of the whole message."""

    link: int
    extend: AppendEntries
    features: Tensor
    rows: int

    def split(self, limit: int) -> tuple["BulkMessage", "BulkMessage | None"]:
        """The first ``limit`` rows, and the rest."""
        extend = self.extend
        if len(extend.tokens) <= limit:
            return self, None
        first = replace(extend, tokens=extend.tokens[:limit])
        rest = replace(extend, start=first.stop, tokens=extend.tokens[limit:])
        return (
            replace(self, extend=first, features=self.features[:limit]),
            replace(self, extend=rest, features=self.features[limit:]),
        )


@dataclass(slots=True)
class Answers:
    """What a batch has to say to one link."""

    drafts: list[Draft] = field(default_factory=list)
    needs: list[ResendFrom] = field(default_factory=list)
