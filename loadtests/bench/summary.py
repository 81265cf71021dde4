"""From the runs of a benchmark to the numbers that are reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from loadtests.bench.acceptance import Comparison, compare
from loadtests.common.compare import first_difference
from loadtests.common.draft_stats import RoundStats
from loadtests.common.result import Result
from loadtests.common.stats import Key, Ratio, Spread, paired_ratio
from loadtests.peers.arms import ARMS, PEERS, PLAIN, VLLM_EAGLE3
from loadtests.peers.schedule import Run


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
    rounds: RoundStats | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """Outputs of an arm and of plain decoding for the same request, token by token."""

    arm: str
    compared: int
    # Index of the first token that differs, for each pair of outputs that do.
    differing_at: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Level:
    """What was measured at one concurrency and temperature.

    Ratios: by arm and the arm it is set against.
    """

    concurrency: int
    temperature: float
    arms: tuple[ArmSummary, ...]
    speeds: Mapping[str, Mapping[str, Ratio]]  # of tokens per second
    round_times: Mapping[str, Mapping[str, Ratio]]  # of seconds per round, as the client sees it
    against_greedy: Mapping[str, Ratio]  # by arm, of tokens per second with its greedy outputs
    agreements: tuple[Agreement, ...]
    # Drafts of our arms with those of vLLM's `eagle3`.
    acceptance: Mapping[str, Comparison]


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything that a benchmark reports."""

    levels: tuple[Level, ...]
    errors: tuple[str, ...]


def summarize(runs: Sequence[Run]) -> Summary:
    """Sum up all runs of a benchmark.

    Outputs and acceptance of peers are compared only where they are greedy: how they draw is
    their own.
    """
    by_level: dict[tuple[int, float], dict[str, list[Run]]] = {}
    for run in runs:
        arms = by_level.setdefault((run.concurrency, run.temperature), {})
        arms.setdefault(run.arm, []).append(run)
    return Summary(
        tuple(
            _level(concurrency, temperature, arms, by_level.get((concurrency, 0.0), {}))
            for (concurrency, temperature), arms in sorted(by_level.items())
        ),
        tuple(record.error for run in runs for record in run.records if record.error),
    )


def _level(
    concurrency: int,
    temperature: float,
    by_arm: Mapping[str, Sequence[Run]],
    greedily: Mapping[str, Sequence[Run]],
) -> Level:
    """Sum up the runs of one level, with those that were greedy at the same concurrency."""
    greedy = temperature == 0
    ours = [name for name in by_arm if name not in PEERS]
    agreeing = by_arm if greedy else ours
    vllm = _by_prompt(by_arm.get(VLLM_EAGLE3, []))
    comparisons = {
        name: compare(_by_prompt(by_arm[name]), vllm) for name in ours if greedy and name != PLAIN
    }
    return Level(
        concurrency,
        temperature,
        tuple(_arm(name, runs) for name, runs in by_arm.items()),
        _ratios(by_arm, _speed),
        _ratios(by_arm, _round_time),
        {} if greedy else _against(by_arm, greedily),
        tuple(
            _agreement(name, by_arm[name], by_arm[PLAIN])
            for name in agreeing
            if PLAIN in by_arm and name != PLAIN
        ),
        {name: found for name, found in comparisons.items() if found is not None},
    )


def _arm(name: str, runs: Sequence[Run]) -> ArmSummary:
    results = [result for run in runs for result in run.results]
    requests = sum(len(run.records) for run in runs)
    whole = [run for run in runs if not run.failed]
    seconds = sum(run.seconds for run in whole)
    return ArmSummary(
        name,
        requests,
        requests - len(results),
        sum(run.tokens for run in whole) / seconds if seconds else None,
        Spread.of([r.first_token for r in results]),
        Spread.of(list(chain.from_iterable(r.gaps for r in results))),
        Spread.of([r.time_per_token for r in results]),
        RoundStats.of(results),
    )


def _ratios(
    by_arm: Mapping[str, Sequence[Run]], measure: Callable[[Run], float | None]
) -> dict[str, dict[str, Ratio]]:
    """By arm and base: a measure of blocks in which nothing failed, paired by block."""
    values = {name: _measured(runs, measure) for name, runs in by_arm.items()}
    found: dict[str, dict[str, Ratio]] = {}
    for name, base in _pairs(by_arm):
        if ratio := paired_ratio(values[name], values[base]):
            found.setdefault(name, {})[base] = ratio
    return found


def _against(
    by_arm: Mapping[str, Sequence[Run]], greedily: Mapping[str, Sequence[Run]]
) -> dict[str, Ratio]:
    """By arm: tokens per second by those of its greedy outputs, paired by block."""
    found = {
        name: paired_ratio(_measured(runs, _speed), _measured(greedily.get(name, ()), _speed))
        for name, runs in by_arm.items()
    }
    return {name: ratio for name, ratio in found.items() if ratio is not None}


def _measured(runs: Sequence[Run], measure: Callable[[Run], float | None]) -> dict[Key, float]:
    """A measure of the blocks in which nothing failed."""
    return {run.key: value for run in runs if not run.failed and (value := measure(run))}


def _pairs(names: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Each arm with those before it in ARMS; the arms of other stacks come after all of these."""
    fixed = [name for name in ARMS if name in names]
    others = [name for name in names if name not in ARMS]
    for place, name in enumerate([*fixed, *others]):
        for base in fixed[:place]:
            yield name, base


def _speed(run: Run) -> float | None:
    return run.tokens / run.seconds if run.seconds else None


def _round_time(run: Run) -> float | None:
    rounds = RoundStats.of(run.results)
    return rounds.client_ms if rounds is not None else None


def _agreement(name: str, runs: Sequence[Run], plain: Sequence[Run]) -> Agreement:
    first, second = _outputs(runs), _outputs(plain)
    shared = sorted(first.keys() & second.keys())
    places = (first_difference(first[key].tokens, second[key].tokens) for key in shared)
    return Agreement(name, len(shared), tuple(place for place in places if place is not None))


def _by_prompt(runs: Sequence[Run]) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for record in chain.from_iterable(run.records for run in runs):
        if record.result is not None:
            found.setdefault(record.prompt, []).append(record.result)
    return found


def _outputs(runs: Sequence[Run]) -> dict[tuple[int, int, int], Result]:
    return {
        (*run.key, index): record.result
        for run in runs
        for index, record in enumerate(run.records)
        if record.result is not None
    }
