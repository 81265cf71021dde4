"""What drafts of a batch are expected to add, by length and source. Pure.

Lists, not arrays: right after a forward the caches are cold, and each call into a library costs
more than the few numbers of a sequence do.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import accumulate, takewhile
from operator import mul

from specwire.messages import DraftBudget
from verifier_svc.draft_length.acceptance_model import AcceptanceStats, PositionalAcceptance


@dataclass(frozen=True, slots=True)
class DraftPlan:
    """Lengths of chain and lookup by sequence; tokens and rows that all are expected to take.

    `found` is the chance that lookups answer all wishes; 1 where none asks for a chain.
    """

    lengths: list[tuple[int, int]]
    tokens: float
    rows: float
    found: float

    @property
    def asks(self) -> bool:
        """Whether there is anything to ask for."""
        return any(chain or lookup for chain, lookup in self.lengths)

    @property
    def wishes(self) -> list[DraftBudget]:
        """What to ask for."""
        return [DraftBudget(*pair) for pair in self.lengths]


@dataclass(frozen=True, slots=True)
class _SequenceGain:
    """Of one sequence: tokens and rows that chains of 0, 1, .. add, and the best lookup."""

    tokens: list[float]
    rows: list[float]
    lookup: int
    lookup_tokens: float
    found: float


def plans(
    records: Items[AcceptanceStats], caps: Items[DraftBudget], price: float, waits: Items[float]
) -> list[DraftPlan]:
    """For each longest chain that all share, from none on, what each sequence should wish for.

    Of each source it is the leading positions that add more than `price`, in tokens a row; no
    lookup where the chain that it would replace is worth more. Of a chain only the tokens will be
    verified whose confidence promises more than that. `waits` is the price of chains by length, in
    tokens, shared by all. Empty where no chain and no lookup is worth a row.
    """
    profile = records[0].calibration.profile()
    chains = PositionalAcceptance.rates_of([record.chain for record in records])
    lookups = PositionalAcceptance.rates_of([record.lookup for record in records])
    founds = PositionalAcceptance.rates_of([record.found for record in records])
    promises: list[_SequenceGain] = []
    for chain, lookup, found, cap in zip(chains, lookups, founds, caps, strict=True):
        gains = _worth(lookup[: cap.lookup], price)
        cut = _cut(chain[: cap.chain], profile, price)
        promises.append(_SequenceGain(*cut, len(gains), sum(gains), found[0]))
    longest = max(len(promise.tokens) for promise in promises) - 1
    if not longest and not any(promise.lookup for promise in promises):
        return []
    run = [(wait - waits[0]) / len(records) for wait in waits]
    return [_plan(promises, length, price, run[length]) for length in range(longest + 1)]


def _plan(promises: Items[_SequenceGain], longest: int, price: float, run: float) -> DraftPlan:
    """What to wish for where no chain is longer than `longest`, for which each pays `run`."""
    lengths: list[tuple[int, int]] = []
    tokens, rows, found = 0.0, 0.0, 1.0
    for promise in promises:
        chain = min(longest, len(promise.tokens) - 1)
        more, taken = promise.tokens[chain], promise.rows[chain]
        lookup, hits = promise.lookup, 0.0
        if lookup and promise.lookup_tokens - price * lookup > more - price * taken - run:
            hits = promise.found
            more += hits * (promise.lookup_tokens - more)
            taken += hits * (lookup - taken)
        else:
            lookup = 0
        lengths.append((chain, lookup))
        tokens += 1 + more
        rows += 1 + taken
        if chain:
            found *= hits
    return DraftPlan(lengths, tokens, rows, found)


def _worth(rates: Items[float], price: float) -> list[float]:
    """Chances of the leading positions that are accepted with one above `price`."""
    return list(takewhile(lambda chance: chance > price, accumulate(rates, mul)))


def _cut(
    rates: Items[float], profile: Items[tuple[float, float]], price: float
) -> tuple[list[float], list[float]]:
    """Expected tokens and rows of chains of 0, 1, .. tokens that are cut by confidence.

    Confidences of a sequence spread as everyone's do, around its own rates. A position is verified
    where its chance, times what those before it have on the mean, is above `price`.
    """
    mean = sum(share * chance for share, chance in profile)
    tokens, rows = [0.0], [0.0]
    reach = gain = verified = 1.0
    for rate in rates:
        likely = kept = 0.0
        for share, chance in profile:
            each = min(rate * chance / mean, 1.0)
            if each * reach > price:
                likely += each * share
                kept += share
        if not kept:
            break
        gain *= likely
        verified *= kept
        reach *= rate
        tokens.append(tokens[-1] + gain)
        rows.append(rows[-1] + verified)
    return tokens, rows
