"""What drafts of a batch are expected to add, by length and source. Pure."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specwire.draft import Wish
from verifier_svc.confidence import Floats
from verifier_svc.record import Acceptance, Record


@dataclass(frozen=True, slots=True)
class Plans:
    """Wishes of n sequences, one plan a column: lengths, expected tokens and rows [n, plans].

    `found` [plans] is the chance that lookups answer all wishes.
    """

    chain: NDArray[np.int64]
    lookup: NDArray[np.int64]
    tokens: Floats
    rows: Floats
    found: Floats

    def wishes(self, plan: int) -> list[Wish]:
        """Those of one plan."""
        pairs = zip(self.chain[:, plan].tolist(), self.lookup[:, plan].tolist(), strict=True)
        return [Wish(*lengths) for lengths in pairs]


def plans(
    records: Items[Record], caps: Items[Wish], price: float, waits: Items[float]
) -> Plans | None:
    """For each longest chain that all share, from none on, what each sequence should wish for.

    Of each source it is the leading positions that add more than `price`, in tokens a row; no
    lookup where the chain that it would replace is worth more. Of a chain only the tokens will be
    verified whose confidence promises more than that. `waits` is the price of chains by length, in
    tokens, shared by all. None where no chain and no lookup is worth a row.
    """
    chain_gains, verified = _cut(
        _rates([record.chain for record in records], [cap.chain for cap in caps]),
        records[0].calibration.profile(),
        price,
    )
    lookup_rates = _rates([record.lookup for record in records], [cap.lookup for cap in caps])
    lookup_gains = lookup_rates.cumprod(1)
    found = Acceptance.stack([record.found for record in records])
    most = _leading(verified > 0)
    lookup = _leading(lookup_gains > price)
    if not (most.any() or lookup.any()):
        return None
    chain = np.minimum(most, np.arange(most.max() + 1))
    each = np.arange(len(records))[:, None]
    of_chain = _cumulated(chain_gains)[each, chain]
    rows = _cumulated(verified)[each, chain]
    of_lookup = _cumulated(lookup_gains)[each, lookup]
    run = (np.array(waits[: chain.shape[1]]) - waits[0]) / len(chain)
    better = of_lookup - price * lookup > of_chain - price * rows - run
    lookup = np.where(better, lookup, 0)
    hits = np.where(lookup > 0, found, 0.0)
    return Plans(
        chain,
        lookup,
        1 + hits * of_lookup + (1 - hits) * of_chain,
        1 + hits * lookup + (1 - hits) * rows,
        np.where(chain > 0, hits, 1.0).prod(0),
    )


def _rates(parts: Items[Acceptance], caps: Items[int]) -> Floats:
    """Chance of each position after those before it [n, positions], none beyond the caps."""
    rates = Acceptance.stack(parts)
    allowed = np.arange(rates.shape[1]) < np.array(caps)[:, None]
    return rates * allowed


def _cut(rates: Floats, profile: tuple[Floats, Floats], price: float) -> tuple[Floats, Floats]:
    """Expected tokens and rows of each position [n, positions] of chains cut by confidence.

    Confidences of a sequence spread as everyone's do, around its own rates. A position is verified
    where its chance, times what those before it have on the mean, is above `price`.
    """
    shares, chances = profile
    reach = rates.cumprod(1) / np.maximum(rates, 1e-9)
    each = np.minimum(rates[:, :, None] * (chances / (shares @ chances)), 1.0)
    kept = (each * reach[:, :, None] > price) * shares
    return (each * kept).sum(2).cumprod(1), kept.sum(2).cumprod(1)


def _cumulated(values: Floats) -> Floats:
    """Sums of the first 0, 1, .. values of each row of [n, positions]."""
    sums = np.zeros((len(values), values.shape[1] + 1))
    values.cumsum(1, out=sums[:, 1:])
    return sums


def _leading(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many leading flags of each row of [n, positions] are set: [n, 1]."""
    lengths: NDArray[np.int64] = np.logical_and.accumulate(flags, axis=1).sum(1, keepdims=True)
    return lengths
