"""What a chain's own probability of a token says of its acceptance. Pure."""

from __future__ import annotations

from collections.abc import Sequence as Items

from verifier_svc.odds import Odds

_BINS = 10
# How much of the spread of confidences is kept from token to token.
_MEMORY = 0.998


class Calibration:
    """The chance of acceptance by confidence, whatever the position, and how confidences spread.

    Of tokens whose predecessors were all accepted. It begins as if confidences were chances, all
    of them alike.
    """

    def __init__(self) -> None:
        self._odds = [Odds(prior=(i + 0.5) / _BINS) for i in range(_BINS)]
        self._spread = [1.0] * _BINS
        self._seen = False

    def observe(self, confidence: float, hit: bool) -> None:
        """Take what a chain thought of a token, and whether it was accepted."""
        at = _bin(confidence)
        self._odds[at].observe(hit)
        self._spread = [_MEMORY * share for share in self._spread]
        self._spread[at] += 1
        self._seen = True

    def kept(self, confidence: Items[float], price: float) -> int:
        """How many leading tokens of a chain are each accepted with a chance above `price`."""
        chance = 1.0
        for i, each in enumerate(confidence):
            chance *= self._odds[_bin(each)].rate
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
        pairs = zip(self._spread, self._odds, strict=True)
        return [(share / total, odds.rate) for share, odds in pairs]


def _bin(confidence: float) -> int:
    return min(int(confidence * _BINS), _BINS - 1)
