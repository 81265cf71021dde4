"""How many tokens to draft: what maximizes expected tokens per second of the batch. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
from itertools import accumulate, islice, takewhile
from operator import mul

from specwire.messages import NO_DRAFT, DraftBudget
from verifier_svc.cost_model.latency import CatchUpCost, DraftLatency, StepLatency
from verifier_svc.draft_length.acceptance_model import (
    PROBE_LENGTH,
    PROBED,
    AcceptanceStats,
    ProbeScheduler,
)
from verifier_svc.draft_length.expected_gain import plans
from verifier_svc.draft_length.two_batch_overlap import STAY

# Drafting must promise so much more than plain decoding: what is promised is never exact, and the
# best of many promises is more likely too high than too low.
_MARGIN = 1.05
# The same for a large batch, whose drafts cost more than is seen where target and drafter share
# cores: what the drafter takes in slows down the steps beside it.
_LARGE_MARGIN = 1.12
# The same for what must be sent ahead of the first draft of a sequence: drafts cost something too.
_ROWS_MARGIN = 2.0
# Drafts beside prompts may make a turn longer by this share of a plain one: prompts do so as well,
# and who has no drafts waits for both.
_STRETCH = 0.5
# What plain decoding and longer drafts cost must stay known to be compared with: some choices are
# one of them, so many that plain ones lose about this share of the speed, one in so many at most.
_TRIAL_LOSS = 0.008
_TRIAL_INTERVAL = 8
# A batch of so many sequences that is best off without drafts stays so for some rounds, one more
# for each such choice in a row, to so many: to choose for each sequence anew takes time that all
# of them wait for.
_LARGE = 8
_LONGEST_REST = 8
# One trial in so many is of longer drafts.
_LONGER_INTERVAL = 4
# Rounds between two probes of chains: at least and at most, and otherwise so many that the
# drafter's time for them is a small share of the target's.
_PROBE_INTERVAL = (16, 128)
_PROBE_SHARE = 0.01


class DraftLengthController:
    """Chooses the draft lengths of each sequence of a batch; 0 is a legal answer."""

    def __init__(self, max_length: int, fixed: int | None = None) -> None:
        """Take the longest draft, and the one length to use where the choice is not wanted."""
        self._max_length = max_length
        self._fixed = fixed
        self.step_cost = StepLatency()
        self._draft = DraftLatency()
        self._row = CatchUpCost()
        self._shared = AcceptanceStats(max_length)
        # What is owed of a round that measures what is not chosen, and how many there were.
        self._owed = 0.0
        self._trials = 0
        self._probes = ProbeScheduler()
        #: What a row must add to the expected tokens of the batch.
        self.price = 0.0
        # Whether the drafter has a device of its own.
        self._apart = False
        #: Speed of two cohorts over that of one, with drafts or without, that the last choice
        #: promised; 0 where drafts cannot be made beside steps.
        self.cohort_gain = 0.0
        # Speed over that of plain decoding which the last choice promised; 1 where that was plain.
        self._gain = 1.0
        #: Whether drafts were best in the last choice.
        self.drafts = fixed != 0
        # Times in a row that they were not, and rounds that go on so.
        self._plain_times = self._plain_rounds = 0

    def expect(self, rates: Items[float], *, apart: bool = False) -> None:
        """Take what a drafter that has come declares of its chains; nothing was seen of it.

        `apart` is whether it has a device of its own, which no step of the target slows down.
        """
        self._draft = DraftLatency()
        self._row = CatchUpCost()
        self._apart = apart
        self.step_cost.by_rows = not apart
        self.cohort_gain = 0.0
        self._shared.chain.expect(rates)

    def new_record(self) -> AcceptanceStats:
        """The record of a new sequence."""
        return AcceptanceStats(self._max_length, self._shared)

    def observe_draft(self, length: int, seconds: float, *, awaited: bool = True) -> None:
        """An answer whose longest chain has `length`, or none, took this long."""
        if self.step_cost.known:
            self._draft.observe(length, seconds / self._draft_unit, awaited=awaited)

    def expected_draft(self, length: int) -> float:
        """Expected seconds until chains of `length` are there; 0 where nothing is known."""
        return self._draft.predict(length) * self._draft_unit

    def observe_rows(self, rows: int, seconds: float) -> None:
        """The drafter took so long for rows that were sent ahead of drafts."""
        self._row.observe(rows, seconds)

    def doubt_rows(self) -> None:
        """In this round, somebody's rows were too dear."""
        self._row.doubt()

    @property
    def rows_are_free(self) -> bool:
        """Whether rows sent ahead of drafts slow nothing down, or their price is not asked."""
        return self._apart or self._fixed is not None

    def affords(self, record: AcceptanceStats, rows: int, tokens: int, size: int) -> bool:
        """Whether drafts for a sequence's next `tokens` pay for the rows that it lacks.

        In a batch of `size`, a token takes its share of a step; drafts save that of those accepted.
        """
        if self.rows_are_free or not rows:
            return True
        lookup = record.found.first * record.lookup.first
        accepted = tokens * max(record.chain.first, lookup)
        saved = accepted * self.step_cost.predict(size) / size
        return _ROWS_MARGIN * rows * self._row.each <= saved

    def beside_prompts(self, size: int, cohorts: int = 1) -> int:
        """The longest drafts that a batch of `size` may use while prompts run with it."""
        if self._fixed is not None:
            return self._max_length
        limit = (1 + _STRETCH) * self._turn(size, 0.0, cohorts)

        def short(length: int) -> bool:
            wait = self.expected_draft(length)
            return self._turn(size * (1 + length), wait, cohorts) <= limit

        return max(takewhile(short, range(1, self._max_length + 1)), default=0)

    @property
    def _draft_unit(self) -> float:
        """Seconds in which drafts are measured: those of a plain step on a shared device."""
        return 1.0 if self._apart else max(self.step_cost.predict(1), 1e-9)

    def rests(self, size: int) -> bool:
        """Whether a batch of so many sequences stays plain in this round without a choice."""
        if not self._plain_rounds or size < _LARGE:
            return False
        self._plain_rounds -= 1
        return True

    def choose(
        self,
        records: Items[AcceptanceStats],
        caps: Items[DraftBudget],
        ready: Items[bool],
        cohorts: int = 1,
    ) -> list[DraftBudget]:
        """The wish for each sequence, given its record and the most that it may use.

        As two cohorts they take turns: the drafts of each are made beside the step of the other.
        Without drafts all would run as one.

        Whether drafts pay is judged as if all were `ready`: the drafter is sent what it lacks of
        the others. Prompt rows change nothing in the choice, only in the caps: the time that they
        take is worth as much to their sequences as it costs the others.
        """
        if self._fixed is not None:
            return self._keep(self._fixed, caps)
        plain = [NO_DRAFT] * len(caps)
        if not caps or not self.step_cost.known:
            return plain
        size = len(caps)
        plain_speed = self._speed(size, size, 0.0)
        margin = _LARGE_MARGIN if size >= _LARGE and not self._apart else _MARGIN
        pays = margin if cohorts == 1 else STAY * margin
        worth = max(self._gain, margin) * plain_speed
        best, speed, other = self._best(records, caps, worth, cohorts)
        self._gain = speed / plain_speed
        if self._apart:
            one, two = (speed, other) if cohorts == 1 else (other, speed)
            self.cohort_gain = two / max(one, margin * plain_speed)
        self.price = self.step_cost.slope * max(speed, plain_speed)
        self.drafts = self._gain > pays
        if not self.drafts:
            best = self._stay_plain(caps, ready)
        else:
            self._plain_times = 0
            if not all(ready):
                caps = [c if now else NO_DRAFT for c, now in zip(caps, ready, strict=True)]
                best, speed, _ = self._best(records, caps, speed, cohorts)
                if speed <= pays * plain_speed:
                    best = plain
            lost = max(1 - 1 / self._gain, _TRIAL_INTERVAL * _TRIAL_LOSS)
            self._owed += _TRIAL_LOSS / lost
        for record, wish in zip(records, best, strict=True):
            if not wish.chain:
                record.chain.fade()
        return best if self._owed < 1 or not self.drafts else self._trial(best, caps)

    def probe(
        self, wishes: Items[DraftBudget], caps: Items[DraftBudget], order: Iterable[int]
    ) -> list[DraftBudget]:
        """What to ask for: what was chosen, and now and then more to keep the records fresh.

        `order` is that in which sequences are taken for it; only then is it looked at.
        """
        if self._fixed is not None or not wishes:
            return list(wishes)
        least, most = _PROBE_INTERVAL
        step = max(self.step_cost.predict(len(wishes)), 1e-9)
        interval = int(self.expected_draft(PROBE_LENGTH) / (_PROBE_SHARE * step))
        return self._probes.apply(
            wishes, caps, min(max(interval, least), most), islice(order, PROBED)
        )

    def _keep(self, length: int, caps: Items[DraftBudget]) -> list[DraftBudget]:
        """Wishes of one length, as far as the caps allow."""
        wishes = [DraftBudget(min(length, cap.chain), min(length, cap.lookup)) for cap in caps]
        if self._apart and any(wishes):
            rows = sum(1 + max(wish.chain, wish.lookup) for wish in wishes)
            wait = self.expected_draft(max(wish.chain for wish in wishes))
            self.cohort_gain = self._speed(1, rows, wait, 2) / self._speed(1, rows, wait)
        return wishes

    def _stay_plain(self, caps: Items[DraftBudget], ready: Items[bool]) -> list[DraftBudget]:
        """No drafts, for this round or for some: what they cost is seen only in trials."""
        plain, size = [NO_DRAFT] * len(caps), len(caps)
        self._gain = 1.0
        self.step_cost.age()
        self._draft.age()
        self._plain_times += 1
        rests = size >= _LARGE and self.cohort_gain < 1
        self._plain_rounds = min(self._plain_times, _LONGEST_REST) if rests else 0
        if rests or not any(ready):
            return plain
        hopeful = self._hopeful(size, sum(ready))
        if not hopeful:
            return plain
        length, longer = hopeful[self._trials % len(hopeful)]
        self._owed += _TRIAL_LOSS / max(longer, _TRIAL_INTERVAL * _TRIAL_LOSS)
        if self._owed < 1:
            return plain
        self._owed -= 1
        self._trials += 1
        self._probes.since_chain = 0
        caps = [cap if now else NO_DRAFT for cap, now in zip(caps, ready, strict=True)]
        return [DraftBudget(min(length, cap.chain)) for cap in caps]

    def _hopeful(self, size: int, tried: int) -> list[tuple[int, float]]:
        """Chains that would pay if they cost half of what is believed, and how much that is.

        It is for `tried` sequences of `size`, as a share of a plain step.
        """
        plain = self._turn(size, 0.0, 1)
        hopeful: list[tuple[int, float]] = []
        chances = accumulate(self._shared.chain.rates()[:PROBE_LENGTH], mul)
        for length, tokens in enumerate(accumulate(chances), 1):
            turn = self._turn(size + tried * length, self.expected_draft(length), 1)
            longer = turn / plain - 1
            if tokens * tried / size > _MARGIN * (1 + longer / 2) - 1:
                hopeful.append((length, longer))
        return hopeful

    def _trial(self, wishes: Items[DraftBudget], caps: Items[DraftBudget]) -> list[DraftBudget]:
        """What was not chosen, so that it can be compared with."""
        self._owed -= 1
        self._trials += 1
        plain = self._trials % _LONGER_INTERVAL
        return [NO_DRAFT] * len(caps) if plain else self._lengthen(wishes, caps)

    @staticmethod
    def _lengthen(wishes: Items[DraftBudget], caps: Items[DraftBudget]) -> list[DraftBudget]:
        """Chains of more than twice the length: what they cost and bring would not be known."""
        pairs = zip(wishes, caps, strict=True)
        return [
            wish._replace(chain=min(2 * wish.chain + 1, cap.chain)) if wish.chain else wish
            for wish, cap in pairs
        ]

    def _best(
        self, records: Items[AcceptanceStats], caps: Items[DraftBudget], speed: float, cohorts: int
    ) -> tuple[list[DraftBudget], float, float]:
        """The wishes that promise most, where tokens are worth 1 / speed, and their speed.

        Third is the best speed of the other number of cohorts, one or two.
        """
        unit = self._draft_unit
        waits = [self._draft.predict(length) * unit for length in range(self._max_length + 1)]
        price = self.step_cost.slope * speed
        best, most, other = None, 0.0, 0.0
        made = plans(records, caps, price, [speed * seconds for seconds in waits])
        for plan, wait in zip(made, waits, strict=False):
            draft = plan.found * waits[0] + (1 - plan.found) * wait if plan.asks else 0.0
            if (promised := self._speed(plan.tokens, plan.rows, draft, cohorts)) > most:
                best, most = plan, promised
            if self._apart:
                other = max(other, self._speed(plan.tokens, plan.rows, draft, 3 - cohorts))
        return (best.wishes, most, other) if best else ([], 0.0, 0.0)

    def _speed(self, tokens: float, rows: float, wait: float, cohorts: int = 1) -> float:
        """Tokens per second of all cohorts, the wait for drafts included."""
        return tokens / max(cohorts * self._turn(rows, wait, cohorts), 1e-9)

    def _turn(self, rows: float, wait: float, cohorts: int) -> float:
        """Seconds of a cohort's step of its share of the rows, and of what it adds for drafts."""
        step = self.step_cost.predict(rows / cohorts)
        return step + wait if cohorts == 1 else max(step, wait)
