"""What a generation took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from specwire.v1 import drafter_pb2, verifier_pb2

TIMINGS = tuple(verifier_pb2.Timings.DESCRIPTOR.fields_by_name)


@dataclass(slots=True)
class GenerationUsage:
    """What a generation took: drafts, rounds, microseconds."""

    cached_tokens: int = 0
    accepted: int = 0
    rejected: int = 0
    rounds: int = 0
    drafted_rounds: int = 0
    proposed_at: list[int] = field(default_factory=list)
    accepted_at: list[int] = field(default_factory=list)
    lookup_proposed_at: list[int] = field(default_factory=list)
    lookup_accepted_at: list[int] = field(default_factory=list)
    timings: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TIMINGS, 0))

    def add(self, other: GenerationUsage) -> None:
        self.cached_tokens += other.cached_tokens
        self.accepted += other.accepted
        self.rejected += other.rejected
        self.rounds += other.rounds
        self.drafted_rounds += other.drafted_rounds
        self.proposed_at = _sum(self.proposed_at, other.proposed_at)
        self.accepted_at = _sum(self.accepted_at, other.accepted_at)
        self.lookup_proposed_at = _sum(self.lookup_proposed_at, other.lookup_proposed_at)
        self.lookup_accepted_at = _sum(self.lookup_accepted_at, other.lookup_accepted_at)
        for name, value in other.timings.items():
            self.timings[name] += value

    @classmethod
    def of_round(cls, tokens: verifier_pb2.Tokens) -> GenerationUsage:
        """What is seen of one round."""
        proposed_at = [1] * tokens.drafted
        accepted_at = [int(position < tokens.accepted) for position in range(tokens.drafted)]
        by_lookup = tokens.source == drafter_pb2.DRAFT_SOURCE_LOOKUP
        return cls(
            accepted=tokens.accepted,
            rejected=tokens.drafted - tokens.accepted,
            rounds=1,
            drafted_rounds=int(tokens.drafted > 0),
            proposed_at=proposed_at,
            accepted_at=accepted_at,
            lookup_proposed_at=proposed_at if by_lookup else [],
            lookup_accepted_at=accepted_at if by_lookup else [],
        )

    @classmethod
    def of_stream(cls, finish: verifier_pb2.Finish) -> GenerationUsage:
        """What the verifier counted."""
        usage = finish.usage
        return cls(
            usage.cached_prompt_tokens,
            usage.accepted_draft_tokens,
            usage.rejected_draft_tokens,
            usage.rounds,
            usage.drafted_rounds,
            list(usage.proposed_at),
            list(usage.accepted_at),
            list(usage.lookup_proposed_at),
            list(usage.lookup_accepted_at),
            {name: getattr(finish.timings, name) for name in TIMINGS},
        )


def _sum(a: Sequence[int], b: Sequence[int]) -> list[int]:
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    return [n + (shorter[i] if i < len(shorter) else 0) for i, n in enumerate(longer)]
