"""How the drafts of a sequence fared, by source, and when a source is tried again. Pure."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specwire.draft import DraftSource, Wish

Floats = NDArray[np.float64]

# Weight, in drafts, of what is assumed before any: a few unlucky ones must not end drafting, and
# sequences differ less than their first drafts do.
_PRIOR = 32.0
# How much of that, and of what was seen, is kept from draft to draft.
_MEMORY = 0.985
# The same once the last outcomes are all alike that together had less than this chance: the
# drafter, or the text, is no longer what it was.
_SURPRISE, _SURPRISED_MEMORY = 0.001, 0.5
# How fast a sequence that is not asked returns, round by round, to what is assumed of all.
_RETURN = 0.005
# Draft tokens of a chain that is a probe: it also tells what longer chains cost and bring.
PROBE_LENGTH = 4
# Sequences that are probed, the oldest: the others' entries need not be sent.
_PROBED = 4
# Rounds between two probes of lookups.
_LOOKUP_INTERVAL = 16


class Odds:
    """The chance of one thing, learned from outcomes, with forgetting."""

    __slots__ = ("_chance", "_last", "_prior", "hits", "shared", "tries", "weight")

    def __init__(self, shared: Odds | None = None) -> None:
        self.shared = shared
        self._prior = 0.5
        self.weight, self.tries, self.hits = _PRIOR, 0.0, 0.0
        # The outcome of the last ones in a row that were alike, and what chance they had.
        self._last, self._chance = False, 1.0

    @property
    def prior(self) -> float:
        """What is assumed before any outcome."""
        return self.shared.rate if self.shared else self._prior

    @property
    def rate(self) -> float:
        """The chance."""
        return (self.hits + self.weight * self.prior) / (self.tries + self.weight)

    def expect(self, rate: float) -> None:
        """Start anew from this chance."""
        self._prior = rate
        self.weight, self.tries, self.hits, self._chance = _PRIOR, 0.0, 0.0, 1.0

    def observe(self, hit: bool) -> None:
        """Take one outcome."""
        rate = self.rate
        run = self._chance if hit is self._last else 1.0
        self._last, self._chance = hit, run * (rate if hit else 1 - rate)
        self._keep(_SURPRISED_MEMORY if self._chance < _SURPRISE else _MEMORY)
        self.tries += 1
        self.hits += hit
        if self.shared is not None:
            self.shared.observe(hit)

    def fade(self) -> None:
        """Nothing was tried."""
        self._keep(1 - _RETURN)
        self.weight += _RETURN * _PRIOR

    def _keep(self, share: float) -> None:
        self.weight *= share
        self.tries *= share
        self.hits *= share


class Acceptance:
    """Conditional acceptance by draft position, of one sequence or shared by all."""

    def __init__(self, length: int, shared: Acceptance | None = None) -> None:
        of_all = shared._odds if shared else [None] * length
        self._odds: list[Odds] = [Odds(odds) for odds in of_all]

    def expect(self, rates: Items[float]) -> None:
        """Start anew from these rates, the last of which stands for all after it; none: 0.5."""
        for i, odds in enumerate(self._odds):
            odds.expect(rates[min(i, len(rates) - 1)] if rates else 0.5)

    def observe(self, proposed: int, accepted: int) -> None:
        """Take one draft; a position counts as tried if all before it were accepted."""
        for i, odds in enumerate(self._odds[: min(proposed, accepted + 1)]):
            odds.observe(i < accepted)

    def fade(self) -> None:
        """A round went by without a draft."""
        for odds in self._odds:
            odds.fade()

    def rates(self) -> Floats:
        """Chance of each position to be accepted if all before it were."""
        return np.array([odds.rate for odds in self._odds])

    @staticmethod
    def stack(parts: Items[Acceptance]) -> Floats:
        """The rates of several that share one profile: [parts, positions]."""
        prior = np.array([odds.prior for odds in parts[0]._odds])
        seen = np.array([[(o.weight, o.tries, o.hits) for o in part._odds] for part in parts])
        weight, tries, hits = seen.transpose(2, 0, 1)
        stacked: Floats = (hits + weight * prior) / (tries + weight)
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
