"""Service-level objectives of a load run: read from the environment, checked at its end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from specserve.settings import StartError

# The names under which the users report what they measure.
TTFT, CHUNK_GAP = "time to first token", "chunk gap"
PREFIX = "HOLDCOURSE_SLO_"


@dataclass(frozen=True, slots=True)
class Objective:
    """An upper limit. `measure` is TTFT or CHUNK_GAP in milliseconds, or None for failures in %."""

    variable: str
    measure: str | None
    limit: float

    def broken(self, measured: float | None) -> str | None:
        """The sentence about a value that is missing or above the limit; None for a good one."""
        what = f"{self.measure} p95 in ms" if self.measure else "failed requests in %"
        if measured is None:
            return f"{what}: nothing was measured ({self.variable}={self.limit:g})."
        if measured > self.limit:
            return f"{what}: {measured:g} is over {self.variable}={self.limit:g}."
        return None


MEASURES: Mapping[str, str | None] = {
    "TTFT_P95_MS": TTFT,
    "CHUNK_GAP_P95_MS": CHUNK_GAP,
    "FAILED_PERCENT": None,
}


def read_objectives(environment: Mapping[str, str]) -> list[Objective]:
    """Read HOLDCOURSE_SLO_TTFT_P95_MS, HOLDCOURSE_SLO_CHUNK_GAP_P95_MS, ..._FAILED_PERCENT.

    Where the last is not set, no request may fail.

    Raises:
        StartError: an unknown objective, or a limit that is not a number from 0.
    """
    given = {name: text for name, text in environment.items() if name.startswith(PREFIX) and text}
    given.setdefault(f"{PREFIX}FAILED_PERCENT", "0")
    return [_objective(name, text) for name, text in sorted(given.items())]


def _objective(variable: str, text: str) -> Objective:
    name = variable.removeprefix(PREFIX)
    if name not in MEASURES:
        known = ", ".join(PREFIX + name for name in MEASURES)
        raise StartError(f"{variable}: there is no such objective; there are {known}.")
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not limit >= 0:
        raise StartError(f"{variable}: must be a number from 0, {text!r} was given.")
    return Objective(variable, MEASURES[name], limit)


def judge(
    objectives: Iterable[Objective], p95: Mapping[str, float], failed_percent: float | None
) -> list[str]:
    """The objectives that a run has broken, one sentence each.

    Args:
        objectives: what holds.
        p95: the 95th percentile of each measure, in milliseconds; what is absent was not measured.
        failed_percent: of all requests; None where there was none.
    """
    values = (
        (objective, p95.get(objective.measure) if objective.measure else failed_percent)
        for objective in objectives
    )
    return [sentence for objective, value in values if (sentence := objective.broken(value))]
