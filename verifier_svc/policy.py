"""How many tokens to draft: what maximizes expected tokens per second of the batch. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence as Items
from dataclasses import replace
from itertools import accumulate

from specwire.draft import NO_WISH, Wish
from verifier_svc.costs import AnswerCost, StepCost
from verifier_svc.record import PROBE_LENGTH, Probes, Record

# Drafting must promise so much more than plain decoding: what is promised is never exact, and the
# best of many promises is more likely too high than too low.
_MARGIN = 1.05
# What plain decoding and longer drafts cost must stay known to be compared with: some choices are
# one of them, so many that plain ones lose about this share of the speed, one in so many at most.
_TRIAL_LOSS = 0.008
_TRIAL_INTERVAL = 8
# A batch of so many sequences that has been best off without drafts, so many times in a row, stays
# so for some rounds: to choose for each of them anew takes time that all of them wait for.
_LARGE = 8
_SETTLED = 32
_PLAIN_ROUNDS = 4
# One trial in so many is of longer drafts.
_LONGER_INTERVAL = 4
# Rounds between two probes of chains: at least and at most, and otherwise so many that the
# drafter's time for them is a small share of the target's.
_PROBE_INTERVAL = (16, 128)
_PROBE_SHARE = 0.01


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
        self._draft = AnswerCost()
        self._shared = Record(max_length)
        # What is owed of a round that measures what is not chosen, and how many there were.
        self._owed = 0.0
        self._trials = 0
        self._probes = Probes()
        # Times in a row that no drafts were best, rounds that go on so, and the size of the batch.
        self._plain_times = self._plain_rounds = self._plain_size = 0

    def new_record(self) -> Record:
        """The record of a new sequence."""
        return Record(self._max_length, self._shared)

    def observe_draft(self, length: int, seconds: float, *, awaited: bool = True) -> None:
        """An answer whose longest chain has `length`, or none, took this long."""
        self._draft.observe(length, seconds, awaited=awaited)

    def expected_draft(self, length: int) -> float:
        """Expected seconds until chains of `length` are there; 0 where nothing is known."""
        return self._draft.predict(length)

    def choose(self, records: Items[Record], caps: Items[Wish]) -> list[Wish]:
        """The wish for each sequence, given its record and the most that it may use.

        Prompt rows beside it change nothing in the choice: the time that they take is worth as
        much to their sequences as it costs the others.
        """
        if self._fixed is not None:
            return [Wish(min(self._fixed, c.chain), min(self._fixed, c.lookup)) for c in caps]
        plain = [NO_WISH] * len(caps)
        if not caps or not self.step_cost.known:
            return plain
        if self._plain_rounds and len(caps) == self._plain_size:
            self._plain_rounds -= 1
            self.step_cost.flatten()
            return plain
        outlooks = [_Outlook(record, cap) for record, cap in zip(records, caps, strict=True)]
        plain_speed = self._speed(outlooks, plain)
        best, best_speed = plain, _MARGIN * plain_speed
        for longest in range(max((len(o.chain) for o in outlooks), default=0) + 1):
            wishes = [self._wish(o, longest, best_speed, len(outlooks)) for o in outlooks]
            if longest and max(wish.chain for wish in wishes) < longest:
                break
            speed = self._speed(outlooks, wishes)
            if speed > best_speed:
                best_speed, best = speed, wishes
        self._plain_rounds = 0
        if best is plain:
            self.step_cost.flatten()
            self._plain_times += 1
            self._plain_size = len(caps)
            if len(caps) >= _LARGE and self._plain_times > _SETTLED:
                self._plain_rounds = _PLAIN_ROUNDS - 1
        else:
            self._plain_times = 0
            lost = max(1 - plain_speed / best_speed, _TRIAL_INTERVAL * _TRIAL_LOSS)
            self._owed += _TRIAL_LOSS / lost
        if self._owed < 1:
            return best
        self._owed -= 1
        self._trials += 1
        return plain if self._trials % _LONGER_INTERVAL else self._lengthen(best, caps)

    def probe(self, wishes: Items[Wish], caps: Items[Wish]) -> list[Wish]:
        """What to ask for: what was chosen, and now and then more to keep the records fresh."""
        if self._fixed is not None or not wishes:
            return list(wishes)
        least, most = _PROBE_INTERVAL
        step = max(self.step_cost.predict(len(wishes)), 1e-9)
        interval = int(self._draft.predict(PROBE_LENGTH) / (_PROBE_SHARE * step))
        return self._probes.apply(wishes, caps, min(max(interval, least), most))

    @staticmethod
    def _lengthen(wishes: Items[Wish], caps: Items[Wish]) -> list[Wish]:
        """Chains of more than twice the length: what they cost and bring would not be known."""
        pairs = zip(wishes, caps, strict=True)
        return [
            replace(wish, chain=min(2 * wish.chain + 1, cap.chain)) if wish.chain else wish
            for wish, cap in pairs
        ]

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
