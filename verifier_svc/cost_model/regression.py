"""How a cost depends on x, learned from noisy measurements. Pure."""

from __future__ import annotations

# How much of what is known an observation that tells much replaces.
_FORGETS = 1 / 32
# The first guess of the noise, how fast it follows, and a slope that is as good as none.
_NOISE = 0.004
_NOISE_GAIN = 0.1
_FLAT = 0.02
# How much is no longer believed after a round in which nothing was seen.
_DOUBT = 1 / 384
# A relative error upwards that is greater is taken for a disturbance, and for no more than this.
_SURPRISE = 0.25


class ForgettingRegression:
    """The slope of a line as a share of its level, by least squares that forget.

    Only observations far from the recent mean of x tell of it, and only they replace what earlier
    ones told: it is not forgotten while x stays what it is. What was not seen for long is believed
    less, without being forgotten, so that larger x are tried again and one trial settles it.
    """

    def __init__(self, share: float) -> None:
        """Take the slope assumed before x has varied, as a share of the cost at x = 0."""
        #: What was learned.
        self.share = share
        self._belief = 1.0
        # Squared distances from the mean of x that were seen.
        self._seen = 0.0
        # Squared relative error, of observations near the mean of x.
        self._noise = _NOISE
        self._surprised = False

    @property
    def believed(self) -> float:
        """What is believed of it."""
        return self._belief * self.share

    def start(self, x: float) -> None:
        """The first observation is at x: the share is one of the cost there from now on."""
        self.share /= 1 + self.share * x

    def move(self, by: float) -> None:
        """The mean of x moves, and the level with it along the line, whose slope stays."""
        self.share /= max(1 + self.share * by, 0.5)

    def doubt(self) -> None:
        """Nothing was seen."""
        self._belief *= 1 - _DOUBT

    def turn(self, away: float, error: float, *, surprises: bool) -> None:
        """Follow a relative error so far away from the mean of x.

        Disturbances only ever add time: a surprise is believed when the next one is a surprise too,
        or where `surprises` are to be expected.
        """
        # So far away, squared, half the slope makes as much of a difference as the noise.
        reach = 4 * self._noise / max(self.share, _FLAT) ** 2
        told = away * away
        weight = told / (told + reach)
        surprising = error > max(_SURPRISE, 4 * self._noise**0.5)
        if surprising and not (self._surprised or surprises):
            error = _SURPRISE
        if weight > 0.5:
            self._surprised = surprising
        self._belief += weight * (1 - self._belief)
        self._seen = (1 - _FORGETS * weight) * self._seen + told
        self.share = max(0.0, self.share + away * error / (self._seen + reach))
        squared = min(error * error, 9 * self._noise)
        self._noise += _NOISE_GAIN / (1 + told) * (squared - self._noise)
