"""Whether two engines accept drafts of the same checkpoint alike, position by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from loadtests.common.draft_stats import RoundStats
from loadtests.common.result import Result
from loadtests.common.stats import COVERAGE, RESAMPLES

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number of both engines. `error` is the standard error of their difference."""

    ours: float
    theirs: float
    error: float

    @property
    def difference(self) -> float:
        return self.ours - self.theirs

    @property
    def errors_apart(self) -> float:
        """The difference in standard errors."""
        if not self.difference:
            return 0.0
        return abs(self.difference) / self.error if self.error else float("inf")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Shares by position: of the drafts that reach it, those that are accepted that far.

    `obstacle` says why the shares cannot be compared; then there are none.
    """

    prompts: int
    positions: tuple[Estimate, ...] = ()
    # Tokens per verification of a whole draft, bonus included: 1 and the sum of the shares.
    length: Estimate | None = None
    obstacle: str | None = None

    @property
    def allowed(self) -> float:
        """Standard errors by which no position may differ, such that equal engines pass in 95 %.

        The level is split over the positions (Bonferroni).
        """
        return NormalDist().inv_cdf(1 - (1 - COVERAGE) / (2 * max(1, len(self.positions))))

    @property
    def equal(self) -> bool | None:
        """Whether no position differs by more than sampling explains; None where unknown."""
        if self.obstacle is not None:
            return None
        return all(estimate.errors_apart <= self.allowed for estimate in self.positions)


def compare(
    ours: Mapping[str, Sequence[Result]], theirs: Mapping[str, Sequence[Result]], seed: int = 0
) -> Comparison | None:
    """Compare the results by prompt of two engines; None where one has none of the other's.

    The error is a bootstrap over prompts: rounds of one text depend on each other, and so do
    two engines' rounds on the same prompt. Both keep their results of a drawn prompt, of all
    repeats, so that what a prompt does to both alike is no error of the difference.
    """
    prompts = sorted(ours.keys() & theirs.keys())
    if not prompts:
        return None
    one, other = ([r for prompt in prompts for r in engine[prompt]] for engine in (ours, theirs))
    obstacle = _obstacle(RoundStats.of(one), RoundStats.of(other), len(one), len(prompts))
    if obstacle is not None:
        return Comparison(len(prompts), obstacle=obstacle)
    places = len(_summed(other, "proposed_at"))
    engines = [[_counts(engine[p], places) for p in prompts] for engine in (ours, theirs)]
    counts = np.array(engines)  # [engine, prompt, proposed or accepted, position]
    units = len(prompts)
    uniform = np.full(units, 1 / units)
    drawn = np.random.default_rng(seed).multinomial(units, uniform, size=RESAMPLES)
    resampled = _shares(np.einsum("ru,eucp->ercp", drawn, counts))
    shares = _shares(counts.sum(axis=1))
    return Comparison(
        units,
        tuple(_estimate(shares[:, place], resampled[:, :, place]) for place in range(places)),
        _estimate(1 + shares.sum(axis=-1), 1 + resampled.sum(axis=-1)),
    )


def _estimate(both: Numbers, resampled: Numbers) -> Estimate:
    """From the numbers of both engines [2] and of their resamples [2, RESAMPLES]."""
    error = np.nanstd(resampled[0] - resampled[1], ddof=1)
    return Estimate(float(both[0]), float(both[1]), float(error))


def _obstacle(
    ours: RoundStats | None, theirs: RoundStats | None, requests: int, prompts: int
) -> str | None:
    """Why the drafts are not alike, in one sentence; None where they are."""
    if prompts < 2:
        return "One prompt says nothing of the error; give more."
    if ours is None or theirs is None or not ours.drafted_rounds or not theirs.drafted_rounds:
        return "One of the two drafted nothing."
    if any(ours.lookup_proposed_at):
        return (
            f"{ours.lookup_proposed_at[0]} of {ours.drafted_rounds} drafts were lookups, which "
            "vLLM has not; start the stack with HOLDCOURSE_LOOKUP=off."
        )
    length, whole = len(ours.proposed_at), len(theirs.proposed_at)
    # Towards its end an output has less room than a draft has tokens: once for each length.
    short = ours.drafted_rounds - ours.proposed_at[-1]
    if length != whole or short > requests * (whole - 1):
        return (
            f"Drafts had up to {length} tokens and {short} had fewer, vLLM's had {whole}; "
            f"start the stack with HOLDCOURSE_DRAFT_LENGTH={whole}."
        )
    return None


def _counts(results: Sequence[Result], places: int) -> list[list[int]]:
    """Proposed and accepted tokens at each position, of all results of a prompt."""
    lists = (_summed(results, name) for name in ("proposed_at", "accepted_at"))
    return [[*counts, *[0] * (places - len(counts))] for counts in lists]


def _summed(results: Sequence[Result], name: str) -> list[int]:
    lists = (result.report[name] for result in results)
    return [sum(counts) for counts in zip_longest(*lists, fillvalue=0)]


def _shares(counts: Numbers) -> Numbers:
    """Accepted by proposed of [..., 2, positions]; NaN where nothing was proposed."""
    proposed, accepted = counts[..., 0, :], counts[..., 1, :]
    with np.errstate(invalid="ignore"):
        shares: Numbers = accepted / proposed
    return shares
