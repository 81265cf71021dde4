"""How the drafts of a sequence fared, by source, and when a source is tried again. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass

from specwire.messages import DraftBudget, DraftSource
from verifier_svc.draft_length.acceptance_rate import AcceptanceRate
from verifier_svc.draft_length.calibration import Calibration

# Draft tokens of a chain that is a probe: it also tells what longer chains cost and bring.
PROBE_LENGTH = 4
# Sequences that are probed: the others' entries need not be sent.
PROBED = 2
# Rounds between two probes of lookups.
_LOOKUP_INTERVAL = 16


class PositionalAcceptance:
    """Conditional acceptance by draft position, of one sequence or shared by all."""

    def __init__(self, length: int, shared: PositionalAcceptance | None = None) -> None:
        self._shared = shared
        self._odds: list[AcceptanceRate] = []
        for i in range(length):
            # Positions differ less from each other than drafters do.
            before = self._odds[i - 1] if i else None
            self._odds.append(AcceptanceRate(shared._odds[i] if shared else before))

    def expect(self, rates: Items[float]) -> None:
        """Start anew from these rates; positions after them are like the last, or 0.5."""
        for i, odds in enumerate(self._odds):
            odds.expect(rates[i] if i < len(rates) else None)

    def observe(self, proposed: int, accepted: int) -> None:
        """Take one draft; a position counts as tried if all before it were accepted."""
        tried = min(proposed, accepted + 1)
        # Chances of the position before, by now and before this draft.
        now = then = 0.5
        shared = (self._shared or self)._odds
        for i, (own, odds) in enumerate(zip(self._odds[:tried], shared, strict=False)):
            hit = i < accepted
            if own is not odds:
                then = odds.given(then if odds.expected is None else odds.expected)
                own.observe(hit, then)
            now = odds.observe(hit, now if odds.expected is None else odds.expected)

    def fade(self) -> None:
        """A round went by without a draft."""
        for odds in self._odds:
            odds.fade()

    @property
    def first(self) -> float:
        """Chance of the first token to be accepted."""
        return self._odds[0].rate

    def rates(self) -> list[float]:
        """Chance of each position to be accepted if all before it were."""
        return self.rates_of([self])[0]

    @staticmethod
    def rates_of(parts: Items[PositionalAcceptance]) -> list[list[float]]:
        """The rates of several that share one profile."""
        priors = [odds.prior for odds in parts[0]._odds]
        return [
            [odds.given(prior) for odds, prior in zip(part._odds, priors, strict=True)]
            for part in parts
        ]


class AcceptanceStats:
    """How a sequence's drafts fared, by source, and how often a lookup finds anything."""

    def __init__(self, length: int, shared: AcceptanceStats | None = None) -> None:
        self.chain: PositionalAcceptance = PositionalAcceptance(
            length, shared.chain if shared else None
        )
        self.lookup: PositionalAcceptance = PositionalAcceptance(
            length, shared.lookup if shared else None
        )
        self.found: PositionalAcceptance = PositionalAcceptance(1, shared.found if shared else None)
        self.calibration: Calibration = shared.calibration if shared else Calibration()

    def observe(
        self, source: DraftSource, proposed: int, accepted: int, confidence: Items[float] = ()
    ) -> None:
        """Take one draft, and what a chain thought of each of its tokens."""
        record = self.chain if source is DraftSource.CHAIN else self.lookup
        record.observe(proposed, accepted)
        for i, each in enumerate(confidence[: min(proposed, accepted + 1)]):
            self.calibration.observe(each, i < accepted)

    def observe_search(self, found: bool) -> None:
        """A lookup was asked for, and found something or not."""
        self.found.observe(1, int(found))


@dataclass(slots=True)
class ProbeScheduler:
    """Asks now and then for a source that is not wished for, so that it is measured again.

    Sequences are probed in the same round, and few of them: a drafter that shares the target's
    cores then disturbs little.
    """

    since_chain: int = 0
    since_lookup: int = 0

    def apply(
        self,
        wishes: Items[DraftBudget],
        caps: Items[DraftBudget],
        interval: int,
        places: Iterable[int],
    ) -> list[DraftBudget]:
        """What to ask for in this round, given the wishes and the most that may be asked for.

        The sequences at `places` are probed.

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
            for i in places:
                if not wishes[i].chain:
                    asked[i] = DraftBudget(chain=min(length, caps[i].chain))
        elif self.since_lookup >= _LOOKUP_INTERVAL:
            self.since_lookup = 0
            for i in places:
                if not wishes[i].lookup:
                    asked[i] = DraftBudget(wishes[i].chain, min(1, caps[i].lookup))
        return asked
