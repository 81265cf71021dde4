"""What the answers' `holdcourse` objects say together: acceptance, and where time went."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from loadtests.common.result import Result

# Fields of `timings` that a round's time is made of, as people read them.
PARTS: Mapping[str, str] = {
    "target_us": "target forward",
    "draw_us": "drawing",
    "drafter_us": "drafter compute",
    "drafter_queue_us": "drafter queue",
    "wire_us": "wire",
    "host_us": "host (Python)",
}


@dataclass(frozen=True, slots=True)
class DraftStats:
    """The drafts of one source, by position: how often a token was proposed and accepted there."""

    proposed_at: tuple[int, ...]
    accepted_at: tuple[int, ...]

    @property
    def rounds(self) -> int:
        """Rounds with such a draft."""
        return self.proposed_at[0] if self.proposed_at else 0

    @property
    def acceptance_length(self) -> float | None:
        """Tokens per verification of such a draft, bonus included."""
        return 1 + sum(self.accepted_at) / self.rounds if self.rounds else None

    @property
    def per_position(self) -> tuple[float, ...]:
        """Share of these rounds that accepted their 1st, 2nd, ... draft token."""
        return tuple(
            accepted / self.rounds if self.rounds else 0.0 for accepted in self.accepted_at
        )


@dataclass(frozen=True, slots=True)
class RoundStats:
    """Sums over requests. `rounds` and `tokens` leave out each request's first token.

    That token comes out of the prefill, before which nothing can be drafted.
    """

    rounds: int
    tokens: int
    drafted_rounds: int
    proposed_at: tuple[int, ...]
    accepted_at: tuple[int, ...]
    # What of that was by lookup of a repeated suffix.
    lookup_proposed_at: tuple[int, ...]
    lookup_accepted_at: tuple[int, ...]
    # Milliseconds per round, by the names in `PARTS`, and as the client saw them; a peer does
    # not say where its time goes.
    parts_ms: Mapping[str, float]
    client_ms: float
    # Generations moved to another verifier, or begun again on the same one.
    failovers: int

    @classmethod
    def of(cls, results: Iterable[Result]) -> RoundStats | None:
        """Sum up; None where no request has a report or none had a round after its prefill."""
        told = [result for result in results if result.report]
        rounds = sum(result.report["rounds"] - 1 for result in told)
        if not rounds:
            return None
        timed = all("timings" in result.report for result in told)
        sums = {part: sum(r.report["timings"][part] for r in told) for part in PARTS if timed}
        return cls(
            rounds,
            sum(len(result.tokens) - 1 for result in told),
            sum(result.report["drafted_rounds"] for result in told),
            _sum([result.report["proposed_at"] for result in told]),
            _sum([result.report["accepted_at"] for result in told]),
            _sum([result.report["lookup_proposed_at"] for result in told]),
            _sum([result.report["lookup_accepted_at"] for result in told]),
            {part: total / rounds / 1e3 for part, total in sums.items()},
            sum(result.decode_seconds for result in told) / rounds * 1e3,
            sum(result.report["failovers"] for result in told),
        )

    @property
    def acceptance_length(self) -> float:
        """Tokens per verification, bonus included, over rounds with and without a draft."""
        return self.tokens / self.rounds

    @property
    def drafted_acceptance_length(self) -> float | None:
        """Tokens per verification, bonus included, over rounds with a draft."""
        if not self.drafted_rounds:
            return None
        return 1 + sum(self.accepted_at) / self.drafted_rounds

    @property
    def drafted_share(self) -> float:
        """Share of rounds that had a draft."""
        return self.drafted_rounds / self.rounds

    @property
    def by_source(self) -> dict[str, DraftStats]:
        """Drafts of the chain and of lookups, those that there were."""
        proposed = _less(self.proposed_at, self.lookup_proposed_at)
        # Lookups may be longer than any chain.
        longest = sum(count > 0 for count in proposed)
        accepted = _less(self.accepted_at, self.lookup_accepted_at)
        sources = {
            "chain": DraftStats(proposed[:longest], accepted[:longest]),
            "lookup": DraftStats(self.lookup_proposed_at, self.lookup_accepted_at),
        }
        return {name: drafts for name, drafts in sources.items() if drafts.rounds}

    @property
    def shares(self) -> tuple[float, ...]:
        """By position: share of the drafts reaching it that were accepted that far."""
        pairs = zip(self.accepted_at, self.proposed_at, strict=True)
        return tuple(accepted / proposed if proposed else 0.0 for accepted, proposed in pairs)


def _sum(lists: Sequence[Sequence[int]]) -> tuple[int, ...]:
    length = max(map(len, lists), default=0)
    return tuple(sum(counts[i] for counts in lists if i < len(counts)) for i in range(length))


def _less(all_: Sequence[int], some: Sequence[int]) -> tuple[int, ...]:
    """Counts without some of them."""
    return tuple(n - (some[i] if i < len(some) else 0) for i, n in enumerate(all_))
