"""What a chain's own probability of a token says of its acceptance. Pure."""

from __future__ import annotations

from collections.abc import Sequence as Items

from verifier_svc.draft_length.acceptance_rate import AcceptanceRate

_BINS = 10
# What is assumed of each of them.
_PRIORS = tuple((i + 0.5) / _BINS for i in range(_BINS))
# How much of the spread of confidences is kept from token to token.
_MEMORY = 0.998
# What a token may count for before all counts are made smaller.
_HEAVY = 1e6


class Calibration:
    """The chance of acceptance by confidence, whatever the position, and how confidences spread.

    Of tokens whose predecessors were all accepted. It begins as if confidences were chances, all
    of them alike.
    """

    def __init__(self) -> None:
        self._odds = [AcceptanceRate(prior=prior) for prior in _PRIORS]
        self._rates = list(_PRIORS)
        # How often each was seen, and what a token counts for there.
        self._spread, self._weight = [1.0] * _BINS, 1.0
        self._seen = False

    def observe(self, confidence: float, hit: bool) -> None:
        """Take what a chain thought of a token, and whether it was accepted."""
        at = _bin(confidence)
        self._rates[at] = self._odds[at].observe(hit, _PRIORS[at])
        # Grows, in place of all others' becoming less.
        self._weight /= _MEMORY
        self._spread[at] += self._weight
        self._seen = True
        if self._weight > _HEAVY:
            self._spread = [share / self._weight for share in self._spread]
            self._weight = 1.0

    def kept(self, confidence: Items[float], price: float) -> int:
        """How many leading tokens of a chain are each accepted with a chance above `price`."""
        chance = 1.0
        for i, each in enumerate(confidence):
            chance *= self._rates[_bin(each)]
            if chance <= price:
                return i
        return len(confidence)

    def profile(self) -> list[tuple[float, float]]:
        """Shares of tokens by confidence, which sum to 1, with their chances.

        One share where nothing was seen.
        """
        if not self._seen:
            return [(1.0, 1.0)]
        total = sum(self._spread)
        return [
            (share / total, rate) for share, rate in zip(self._spread, self._rates, strict=True)
        ]


def _bin(confidence: float) -> int:
    return int(confidence * _BINS) if confidence < 1 else _BINS - 1
