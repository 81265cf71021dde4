"""From the runs of a benchmark to the numbers that are reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from loadtests.acceptance import Comparison, compare
from loadtests.arms import (
    OURS,
    PLAIN,
    SPECULATIVE,
    TRANSFORMERS,
    VLLM,
    VLLM_EAGLE3,
    Run,
    throughputs,
)
from loadtests.compare import first_difference
from loadtests.result import Result
from loadtests.rounds import Rounds
from loadtests.stats import Ratio, paired_ratio, percentile

COMPARISONS = (
    (SPECULATIVE, PLAIN),
    (PLAIN, TRANSFORMERS),
    (SPECULATIVE, TRANSFORMERS),
    (PLAIN, VLLM),
    (SPECULATIVE, VLLM),
    (SPECULATIVE, VLLM_EAGLE3),
    (VLLM_EAGLE3, VLLM),
)


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and 95th percentile; None where nothing was measured."""

    p50: float | None
    p95: float | None


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """One arm. Times are in seconds; `tokens_per_second` is of all its blocks together."""

    name: str
    requests: int
    failed: int
    tokens_per_second: float | None
    first_token: Spread
    chunk_gap: Spread
    time_per_token: Spread
    rounds: Rounds | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """Outputs of two arms for the same request, token by token."""

    first: str
    second: str
    compared: int
    # Index of the first token that differs, for each pair of outputs that do.
    differing_at: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything that a benchmark reports. Ratios are of tokens per second."""

    arms: tuple[ArmSummary, ...]
    ratios: dict[str, Ratio]
    agreements: tuple[Agreement, ...]
    # Of our drafts with those of vLLM's `eagle3`; None where either was not measured.
    acceptance: Comparison | None
    errors: tuple[str, ...]


def summarize(runs: Sequence[Run], *, greedy: bool) -> Summary:
    """Sum up all runs of a benchmark.

    Outputs and acceptance of peers are compared only where they are `greedy`: how they draw is
    their own.
    """
    names = list(dict.fromkeys(run.arm for run in runs))
    ratios = {
        f"{one}/{other}": ratio
        for one, other in COMPARISONS
        if (ratio := paired_ratio(throughputs(runs, one), throughputs(runs, other)))
    }
    agreements = (
        _agreement(runs, one, other)
        for one, other in COMPARISONS
        if greedy or {one, other} <= set(OURS)
    )
    return Summary(
        tuple(_arm(name, [run for run in runs if run.arm == name]) for name in names),
        ratios,
        tuple(agreement for agreement in agreements if agreement.compared),
        compare(_by_prompt(runs, SPECULATIVE), _by_prompt(runs, VLLM_EAGLE3)) if greedy else None,
        tuple(record.error for run in runs for record in run.records if record.error),
    )


def _arm(name: str, runs: Sequence[Run]) -> ArmSummary:
    records = [record for run in runs for record in run.records]
    results = [record.result for record in records if record.result is not None]
    whole = [run for run in runs if not run.failed]
    seconds = sum(run.seconds for run in whole)
    return ArmSummary(
        name,
        len(records),
        len(records) - len(results),
        sum(run.tokens for run in whole) / seconds if seconds else None,
        _spread([r.first_token for r in results]),
        _spread(list(chain.from_iterable(r.gaps for r in results))),
        _spread([r.time_per_token for r in results]),
        Rounds.of(results),
    )


def _spread(values: Sequence[float | None]) -> Spread:
    measured = [value for value in values if value is not None]
    return Spread(percentile(measured, 50), percentile(measured, 95))


def _agreement(runs: Sequence[Run], one: str, other: str) -> Agreement:
    first, second = _outputs(runs, one), _outputs(runs, other)
    shared = sorted(first.keys() & second.keys())
    places = (first_difference(first[key].tokens, second[key].tokens) for key in shared)
    differing = tuple(place for place in places if place is not None)
    return Agreement(one, other, len(shared), differing)


def _by_prompt(runs: Sequence[Run], arm: str) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for record in chain.from_iterable(run.records for run in runs if run.arm == arm):
        if record.result is not None:
            found.setdefault(record.prompt, []).append(record.result)
    return found


def _outputs(runs: Sequence[Run], arm: str) -> dict[tuple[int, int, int], Result]:
    return {
        (*run.key, index): record.result
        for run in runs
        if run.arm == arm
        for index, record in enumerate(run.records)
        if record.result is not None
    }
