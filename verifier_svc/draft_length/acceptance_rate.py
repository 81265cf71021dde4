"""A chance that is learned from outcomes. Pure."""

from __future__ import annotations

# Weight, in outcomes, of what is assumed before any: a few unlucky ones must not end drafting, and
# sequences differ less than their first drafts do.
_PRIOR = 32.0
# How much of that, and of what was seen, is kept from outcome to outcome.
_MEMORY = 0.985
# The same once the last outcomes are all alike that together had less than this chance: the
# drafter, or the text, is no longer what it was.
_SURPRISE, _SURPRISED_MEMORY = 0.001, 0.5
# How fast what nobody tries returns to what is assumed.
_RETURN = 0.005


class AcceptanceRate:
    """The chance of one thing, learned from outcomes, with forgetting."""

    __slots__ = ("_chance", "_last", "expected", "hits", "similar", "tries", "weight")

    def __init__(self, similar: AcceptanceRate | None = None, prior: float | None = None) -> None:
        """Take what is assumed before any outcome: a chance, or that of similar things, or 0.5."""
        self.similar = similar
        self.expected = prior
        self.weight, self.tries, self.hits = _PRIOR, 0.0, 0.0
        # The outcome of the last ones in a row that were alike, and what chance they had.
        self._last, self._chance = False, 1.0

    @property
    def prior(self) -> float:
        """What is assumed before any outcome."""
        if self.expected is not None:
            return self.expected
        return self.similar.rate if self.similar else 0.5

    @property
    def rate(self) -> float:
        """The chance."""
        return self.given(self.prior)

    def given(self, prior: float) -> float:
        """The chance if `prior` was assumed before any outcome."""
        return (self.hits + self.weight * prior) / (self.tries + self.weight)

    def expect(self, rate: float | None) -> None:
        """Start anew from this chance; None: nothing is known of it."""
        self.expected = rate
        self.weight, self.tries, self.hits, self._chance = _PRIOR, 0.0, 0.0, 1.0

    def observe(self, hit: bool, prior: float | None = None) -> float:
        """Take one outcome; `prior` is what was assumed before any, if the caller has it.

        Returns the chance by now.
        """
        if prior is None:
            prior = self.prior
        rate = (self.hits + self.weight * prior) / (self.tries + self.weight)
        chance = rate if hit else 1 - rate
        if hit is self._last:
            chance *= self._chance
        self._last, self._chance = hit, chance
        memory = _SURPRISED_MEMORY if chance < _SURPRISE else _MEMORY
        self.weight = weight = self.weight * memory
        self.tries = tries = self.tries * memory + 1
        self.hits = hits = self.hits * memory + hit
        return (hits + weight * prior) / (tries + weight)

    def fade(self) -> None:
        """Nothing was tried."""
        kept = 1 - _RETURN
        self.weight = self.weight * kept + _RETURN * _PRIOR
        self.tries *= kept
        self.hits *= kept
