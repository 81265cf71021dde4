"""How many tokens to draft: what maximizes expected tokens per second of the batch. Pure."""

from __future__ import annotations

from collections.abc import Sequence as Items

# Weight of the shared acceptance profile against a sequence's own rounds.
_PRIOR_ROUNDS = 4.0
_DECAY = 0.95
# How fast the level of a cost, and its dependence on x, follow what is observed.
_LEVEL_GAIN = 0.1
_SLOPE_GAIN = 0.2
# One choice in so many is plain: what plain decoding costs must stay known to be compared with.
_PLAIN_INTERVAL = 48


class LinearCost:
    """Seconds as a line in x through their recent mean, kept as level and relative slope.

    The level follows every observation, the slope only those away from the recent mean of x, so
    that it is not forgotten while x stays what it is, and scales with the machine's speed.
    """

    def __init__(self, slope_share: float) -> None:
        """Take the slope assumed before x has varied, as a share of the mean cost."""
        self._share = slope_share
        self._count = 0
        self._x = self._y = 0.0

    @property
    def known(self) -> bool:
        """Whether there is any observation."""
        return self._count > 0

    def observe(self, x: float, seconds: float) -> None:
        """Take one measurement; one far above the line counts as a mild disturbance."""
        if self.known:
            expected = max(self.predict(x), 0.1 * self._y)
            seconds = min(seconds, 3 * expected)
            away = x - self._x
            error = (seconds - self.predict(x)) / max(self._y, 1e-9)
            gain = max(_SLOPE_GAIN, 1 / self._count)
            self._share = max(0.0, self._share + gain * away * error / (away * away + 1))
        self._count += 1
        gain = max(_LEVEL_GAIN, 1 / self._count)
        self._x += gain * (x - self._x)
        self._y += gain * (seconds - self._y)

    @property
    def slope(self) -> float:
        """Seconds per unit of x, never negative."""
        return self._share * self._y

    def predict(self, x: float) -> float:
        """Expected seconds at x, never negative; 0 where nothing is known."""
        return max(0.0, self._y + self.slope * (x - self._x))


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


class DraftLengthPolicy:
    """Chooses the draft length of each sequence of a batch; 0 is a legal answer."""

    def __init__(self, max_length: int, fixed: int | None = None) -> None:
        """Take the longest draft, and the one length to use where the choice is not wanted."""
        self._max_length = max_length
        self._fixed = fixed
        self._verify = LinearCost(slope_share=0.03)
        self._draft = LinearCost(slope_share=0.1)
        self._shared = Acceptance(max_length)
        self._choices = 0

    @property
    def adaptive(self) -> bool:
        """Whether lengths are chosen, so that measurements must be kept fresh."""
        return self._fixed is None

    def new_acceptance(self) -> Acceptance:
        """The acceptance record of a new sequence."""
        return Acceptance(self._max_length, self._shared)

    def observe_verify(self, rows: int, seconds: float) -> None:
        """A verification of `rows` rows took this long, drawing included."""
        self._verify.observe(rows, seconds)

    def observe_draft(self, length: int, seconds: float) -> None:
        """The answer to a request for drafts of `length` took this long."""
        self._draft.observe(length, seconds)

    def expected_draft(self, length: int) -> float:
        """Expected seconds until drafts of `length` are there; 0 where nothing is known."""
        return self._draft.predict(length)

    def choose(self, records: Items[Acceptance], caps: Items[int]) -> list[int]:
        """The draft length of each sequence, given its record and the most that it may use."""
        if self._fixed is not None:
            return [min(self._fixed, cap) for cap in caps]
        self._choices += 1
        if not self._verify.known or self._choices % _PLAIN_INTERVAL == 0:
            return [0] * len(caps)
        gains = [record.gains()[:cap] for record, cap in zip(records, caps, strict=True)]
        plain = len(gains) / max(self._verify.predict(len(gains)), 1e-9)
        best_speed, best = plain, [0] * len(gains)
        for longest in range(1, max(map(len, gains), default=0) + 1):
            lengths = [self._worthwhile(g[:longest], best_speed) for g in gains]
            if max(lengths) < longest:
                break
            tokens = sum(1 + sum(g[:n]) for g, n in zip(gains, lengths, strict=True))
            rows = len(gains) + sum(lengths)
            speed = tokens / max(self._verify.predict(rows) + self._draft.predict(longest), 1e-9)
            if speed > best_speed:
                best_speed, best = speed, lengths
        return best

    def _worthwhile(self, gains: Items[float], speed: float) -> int:
        """Leading positions whose expected tokens outweigh the time of their row."""
        price = self._verify.slope * speed
        return next((i for i, gain in enumerate(gains) if gain <= price), len(gains))
