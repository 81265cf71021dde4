"""How the drafts of a sequence fared, by source, and when a source is tried again. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from specwire.draft import DraftSource, Wish

# Weight of the shared acceptance profile against a sequence's own rounds.
_PRIOR_ROUNDS = 4.0
_DECAY = 0.95
# Rounds between two probes of a source that is not wished for.
_PROBE_INTERVAL = 16


class Acceptance:
    """Conditional acceptance by chain position, with forgetting, around a shared profile."""

    def __init__(self, length: int, shared: Acceptance | None = None) -> None:
        self._shared = shared
        self._tries = [0.0] * length
        self._hits = [0.0] * length

    def observe(self, proposed: int, accepted: int) -> None:
        """Take one draft; a position counts as tried if all before it were accepted."""
        for position in range(min(proposed, accepted + 1, len(self._tries))):
            self._tries[position] = _DECAY * self._tries[position] + 1
            self._hits[position] = _DECAY * self._hits[position] + (position < accepted)
        if self._shared is not None:
            self._shared.observe(proposed, accepted)

    def rate(self, position: int) -> float:
        """Chance that the draft token at `position` is accepted if all before it were."""
        prior = self._shared.rate(position) if self._shared is not None else 0.5
        hits = self._hits[position] + _PRIOR_ROUNDS * prior
        return hits / (self._tries[position] + _PRIOR_ROUNDS)

    def gains(self) -> list[float]:
        """Expected tokens that each chain position adds."""
        survival, gains = 1.0, []
        for position in range(len(self._tries)):
            survival *= self.rate(position)
            gains.append(survival)
        return gains


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
    """Asks now and then for a source that is not wished for, so that it is measured again."""

    without_chain: int = 0
    without_lookup: int = 0

    def apply(self, wish: Wish, cap: Wish) -> Wish:
        """What to ask for in this round, given the wish and the most that may be asked for.

        A chain takes the place of nothing or of a lookup, which would leave no chain to see. A
        lookup goes before nothing or a chain. Where neither is wished for they take turns.
        """
        self.without_chain = 0 if wish.chain else self.without_chain + 1
        self.without_lookup = 0 if wish.lookup else self.without_lookup + 1
        if not wish.chain and self.without_chain % _PROBE_INTERVAL == 0:
            return Wish(chain=min(1, cap.chain))
        if not wish.lookup and self.without_lookup % _PROBE_INTERVAL == _PROBE_INTERVAL // 2:
            return Wish(wish.chain, min(1, cap.lookup))
        return wish
