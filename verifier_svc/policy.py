"""How many tokens to draft: what maximizes expected tokens per second of the batch. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence as Items
from itertools import accumulate

from specwire.draft import NO_WISH, Wish
from verifier_svc.costs import LinearCost, StepCost
from verifier_svc.record import Record

# One choice in so many is plain: what plain decoding costs must stay known to be compared with.
_PLAIN_INTERVAL = 48


class _Outlook:
    """What drafts of one sequence are expected to add, by position and source."""

    def __init__(self, record: Record, cap: Wish) -> None:
        self.chain = record.chain.gains()[: cap.chain]
        self.lookup = record.lookup.gains()[: cap.lookup]
        self._hit_rate = record.hit_rate
        # Expected tokens that a draft of each length adds.
        self.of_chain = [0.0, *accumulate(self.chain)]
        self.of_lookup = [0.0, *accumulate(self.lookup)]

    def hits(self, wish: Wish) -> float:
        """Chance that a lookup answers the wish."""
        return self._hit_rate if wish.lookup else 0.0

    def tokens(self, wish: Wish) -> float:
        """Expected tokens of a round."""
        hits = self.hits(wish)
        return 1 + hits * self.of_lookup[wish.lookup] + (1 - hits) * self.of_chain[wish.chain]

    def rows(self, wish: Wish) -> float:
        """Expected rows of a round."""
        hits = self.hits(wish)
        return 1 + hits * wish.lookup + (1 - hits) * wish.chain


class DraftLengthPolicy:
    """Chooses the draft lengths of each sequence of a batch; 0 is a legal answer."""

    def __init__(self, max_length: int, fixed: int | None = None) -> None:
        """Take the longest draft, and the one length to use where the choice is not wanted."""
        self._max_length = max_length
        self._fixed = fixed
        self.step_cost = StepCost()
        self._draft = LinearCost(slope_share=0.1)
        self._shared = Record(max_length)
        self._choices = 0

    @property
    def adaptive(self) -> bool:
        """Whether lengths are chosen, so that measurements must be kept fresh."""
        return self._fixed is None

    def new_record(self) -> Record:
        """The record of a new sequence."""
        return Record(self._max_length, self._shared)

    def observe_draft(self, length: int, seconds: float) -> None:
        """An answer whose longest chain has `length` took this long; 0 where none was run."""
        self._draft.observe(length, seconds)

    def expected_draft(self, length: int) -> float:
        """Expected seconds until chains of `length` are there; 0 where nothing is known."""
        return self._draft.predict(length)

    def choose(self, records: Items[Record], caps: Items[Wish]) -> list[Wish]:
        """The wish for each sequence, given its record and the most that it may use."""
        if self._fixed is not None:
            return [Wish(min(self._fixed, c.chain), min(self._fixed, c.lookup)) for c in caps]
        self._choices += 1
        best = [NO_WISH] * len(caps)
        if not self.step_cost.known or self._choices % _PLAIN_INTERVAL == 0:
            return best
        outlooks = [_Outlook(record, cap) for record, cap in zip(records, caps, strict=True)]
        best_speed = self._speed(outlooks, best)
        for longest in range(max((len(o.chain) for o in outlooks), default=0) + 1):
            wishes = [self._wish(o, longest, best_speed, len(outlooks)) for o in outlooks]
            if longest and max(wish.chain for wish in wishes) < longest:
                break
            speed = self._speed(outlooks, wishes)
            if speed > best_speed:
                best_speed, best = speed, wishes
        return best

    def _wish(self, outlook: _Outlook, longest: int, speed: float, sharers: int) -> Wish:
        """Leading positions of each source whose expected tokens outweigh the time of their rows.

        No lookup where the chain that it would replace is worth more.
        """
        price = self.step_cost.slope * speed
        chain, lookup = (
            next((i for i, gain in enumerate(gains) if gain <= price), len(gains))
            for gains in (outlook.chain[:longest], outlook.lookup)
        )
        run = speed * (self._draft.predict(longest) - self._draft.predict(0)) / sharers
        worth_chain = outlook.of_chain[chain] - price * chain - run
        worth_lookup = outlook.of_lookup[lookup] - price * lookup
        return Wish(chain, lookup if worth_lookup > worth_chain else 0)

    def _speed(self, outlooks: Items[_Outlook], wishes: Items[Wish]) -> float:
        """Expected tokens per second of the batch, the wait for drafts included."""
        pairs = list(zip(outlooks, wishes, strict=True))
        seconds = self.step_cost.predict(sum(o.rows(w) for o, w in pairs))
        if any(wishes):
            # The drafter answers at once where lookups answer all.
            all_found = math.prod(o.hits(w) for o, w in pairs if w.chain)
            longest = max(w.chain for w in wishes)
            seconds += all_found * self._draft.predict(0)
            seconds += (1 - all_found) * self._draft.predict(longest)
        return sum(o.tokens(w) for o, w in pairs) / max(seconds, 1e-9)
