"""How the drafts of a sequence fared, by source, and when a source is tried again. Pure."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specwire.draft import DraftSource, Wish

Floats = NDArray[np.float64]

# How much of what was seen is kept from draft to draft, and the weight, in drafts, of what is
# assumed before: of all sequences together, and of one against these. A few unlucky drafts of the
# first sequence must not end drafting; sequences differ less than their first drafts do.
_SHARED_MEMORY, _SHARED_PRIOR = 0.98, 16.0
_OWN_MEMORY, _OWN_PRIOR = 0.98, 16.0
# The same from round to round while a source is not asked: the sequence is at another place.
_UNASKED_MEMORY = 0.995
# Draft tokens of a chain that is a probe: it also tells what longer chains cost and bring.
PROBE_LENGTH = 4
# Sequences that are probed, the oldest: the others' entries need not be sent.
_PROBED = 4
# Rounds between two probes of lookups.
_LOOKUP_INTERVAL = 16


class Acceptance:
    """Conditional acceptance by draft position, with forgetting, around a shared profile."""

    def __init__(self, length: int, shared: Acceptance | None = None) -> None:
        self._shared = shared
        self._tries: Floats = np.zeros(length)
        self._hits: Floats = np.zeros(length)

    def observe(self, proposed: int, accepted: int) -> None:
        """Take one draft; a position counts as tried if all before it were accepted."""
        seen = min(proposed, accepted + 1, len(self._tries))
        memory = _OWN_MEMORY if self._shared else _SHARED_MEMORY
        self._tries[:seen] = memory * self._tries[:seen] + 1
        self._hits[:seen] = memory * self._hits[:seen] + (np.arange(seen) < accepted)
        if self._shared is not None:
            self._shared.observe(proposed, accepted)

    def fade(self) -> None:
        """A round went by without a draft."""
        self._tries *= _UNASKED_MEMORY
        self._hits *= _UNASKED_MEMORY

    def rates(self) -> Floats:
        """Chance of each position to be accepted if all before it were."""
        rates: Floats = self.stack([self])[0]
        return rates

    @staticmethod
    def stack(parts: Items[Acceptance]) -> Floats:
        """The rates of several that share one profile: [parts, positions]."""
        shared = parts[0]._shared
        prior, weight = (shared.rates(), _OWN_PRIOR) if shared else (0.5, _SHARED_PRIOR)
        hits, tries = ([part._hits for part in parts], [part._tries for part in parts])
        stacked: Floats = (np.array(hits) + weight * prior) / (np.array(tries) + weight)
        return stacked


class Record:
    """How a sequence's drafts fared, by source, and how often a lookup finds anything."""

    def __init__(self, length: int, shared: Record | None = None) -> None:
        self.chain: Acceptance = Acceptance(length, shared.chain if shared else None)
        self.lookup: Acceptance = Acceptance(length, shared.lookup if shared else None)
        self.found: Acceptance = Acceptance(1, shared.found if shared else None)

    def observe(self, source: DraftSource, proposed: int, accepted: int) -> None:
        """Take one draft that was verified."""
        record = self.chain if source is DraftSource.CHAIN else self.lookup
        record.observe(proposed, accepted)

    def observe_search(self, found: bool) -> None:
        """A lookup was asked for, and found something or not."""
        self.found.observe(1, int(found))


@dataclass(slots=True)
class Probes:
    """Asks now and then for a source that is not wished for, so that it is measured again.

    Sequences are probed in the same round, and few of them: a drafter that shares the target's
    cores then disturbs little.
    """

    since_chain: int = 0
    since_lookup: int = 0

    def apply(self, wishes: Items[Wish], caps: Items[Wish], interval: int) -> list[Wish]:
        """What to ask for in this round, given the wishes and the most that may be asked for.

        A chain, every `interval` rounds, takes the place of nothing or of a lookup, which would
        leave no chain to see. A lookup costs little, and goes before nothing or a chain.
        """
        asked = list(wishes)
        self.since_chain += 1
        self.since_lookup += 1
        if self.since_chain >= interval:
            self.since_chain = 0
            # No longer than those that are waited for.
            length = max(wish.chain for wish in wishes) or PROBE_LENGTH
            for i, wish in enumerate(wishes[:_PROBED]):
                if not wish.chain:
                    asked[i] = Wish(chain=min(length, caps[i].chain))
        elif self.since_lookup >= _LOOKUP_INTERVAL:
            self.since_lookup = 0
            for i, wish in enumerate(wishes[:_PROBED]):
                if not wish.lookup:
                    asked[i] = Wish(wish.chain, min(1, caps[i].lookup))
        return asked
