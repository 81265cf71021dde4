"""How the drafts of a sequence fared, by source, and when a source is tried again. Pure."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import accumulate, repeat
from operator import mul

from specwire.draft import DraftSource, Wish

# Weight of the shared acceptance profile against a sequence's own rounds.
_PRIOR_ROUNDS = 4.0
_DECAY = 0.95
# Draft tokens of a chain that is a probe: it also tells what longer chains cost and bring.
PROBE_LENGTH = 4
# Sequences whose chains are probed in one round.
_PROBED = 8
# Rounds between two probes of lookups.
_LOOKUP_INTERVAL = 16


class Acceptance:
    """Conditional acceptance by chain position, with forgetting, around a shared profile."""

    def __init__(self, length: int, shared: Acceptance | None = None) -> None:
        self._shared = shared
        self._tries = [0.0] * length
        self._hits = [0.0] * length
        self._known: list[float] | None = None

    def observe(self, proposed: int, accepted: int) -> None:
        """Take one draft; a position counts as tried if all before it were accepted."""
        for position in range(min(proposed, accepted + 1, len(self._tries))):
            self._tries[position] = _DECAY * self._tries[position] + 1
            self._hits[position] = _DECAY * self._hits[position] + (position < accepted)
        self._known = None
        if self._shared is not None:
            self._shared.observe(proposed, accepted)

    def rate(self, position: int) -> float:
        """Chance that the draft token at `position` is accepted if all before it were."""
        return self._rates()[position]

    def gains(self) -> list[float]:
        """Expected tokens that each chain position adds."""
        return list(accumulate(self._rates(), mul))

    def _rates(self) -> list[float]:
        # A shared profile is asked by every sequence of a batch.
        if self._shared is None and self._known is not None:
            return self._known
        prior = repeat(0.5) if self._shared is None else self._shared._rates()
        self._known = [
            (hits + _PRIOR_ROUNDS * rate) / (tries + _PRIOR_ROUNDS)
            for hits, tries, rate in zip(self._hits, self._tries, prior, strict=False)
        ]
        return self._known


class Record:
    """How a sequence's drafts fared, by source, and how often a lookup finds anything."""

    def __init__(self, length: int, shared: Record | None = None) -> None:
        self.chain: Acceptance = Acceptance(length, shared.chain if shared else None)
        self.lookup: Acceptance = Acceptance(length, shared.lookup if shared else None)
        self._found: Acceptance = Acceptance(1, shared._found if shared else None)

    def observe(self, source: DraftSource, proposed: int, accepted: int) -> None:
        """Take one draft that was verified."""
        record = self.chain if source is DraftSource.CHAIN else self.lookup
        record.observe(proposed, accepted)

    def observe_search(self, found: bool) -> None:
        """A lookup was asked for, and found something or not."""
        self._found.observe(1, int(found))

    @property
    def hit_rate(self) -> float:
        """Chance that a lookup finds something."""
        return self._found.rate(0)


@dataclass(slots=True)
class Probes:
    """Asks now and then for a source that is not wished for, so that it is measured again.

    Sequences are probed in the same round, and few of them: a drafter that shares the target's
    cores then disturbs little.
    """

    since_chain: int = 0
    since_lookup: int = 0
    next: int = 0

    def apply(self, wishes: Items[Wish], caps: Items[Wish], interval: int) -> list[Wish]:
        """What to ask for in this round, given the wishes and the most that may be asked for.

        A chain, every `interval` rounds, takes the place of nothing or of a lookup, which would
        leave no chain to see; a few sequences have their turn. A lookup costs little, and goes
        before nothing or a chain.
        """
        asked = list(wishes)
        self.since_chain += 1
        self.since_lookup += 1
        if self.since_chain >= interval:
            self.since_chain = 0
            # No longer than those that are waited for.
            length = max(wish.chain for wish in wishes) or PROBE_LENGTH
            without = [i for i, wish in enumerate(wishes) if not wish.chain]
            self.next = self.next % len(without) if without else 0
            for i in (without[self.next :] + without[: self.next])[:_PROBED]:
                asked[i] = Wish(chain=min(length, caps[i].chain))
            self.next += _PROBED
        elif self.since_lookup >= _LOOKUP_INTERVAL:
            self.since_lookup = 0
            for i, wish in enumerate(wishes):
                if not wish.lookup:
                    asked[i] = Wish(wish.chain, min(1, caps[i].lookup))
        return asked
