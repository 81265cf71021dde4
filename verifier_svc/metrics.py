"""Prometheus metrics of the verifier."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable
from functools import cache

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from specwire.messages import DraftSource
from verifier_svc.scheduling.scheduler import Scheduler

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.5, 1.0, 2.0)


class Metrics:
    """Names follow the field's conventions: spec_decode counters as in other servers."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        prefix = "holdcourse_verifier_"
        self.requests = Counter(
            prefix + "requests", "Generations by how they ended.", ["outcome"], registry=registry
        )
        self.generated = Counter(prefix + "generation_tokens", "Tokens emitted.", registry=registry)
        self.prompted = Counter(prefix + "prompt_tokens", "Prompt tokens.", registry=registry)
        self.featured = Counter(
            prefix + "feature_tokens", "Document tokens whose states were sent.", registry=registry
        )
        self.feature_calls = Gauge(
            prefix + "num_feature_calls", "Features calls that are open.", registry=registry
        )
        self.prefix_queries = Counter(
            prefix + "prefix_cache_queries",
            "Tokens of admitted sequences, for which a cached prefix was looked for.",
            registry=registry,
        )
        self.prefix_hits = Counter(
            prefix + "prefix_cache_hits", "Tokens of them that were cached.", registry=registry
        )
        self.rounds = Counter(prefix + "rounds", "Verifications of a sequence.", registry=registry)

        def by_source(name: str, text: str, *more: str) -> Counter:
            labels = ["source", *more]
            return Counter(f"{prefix}spec_decode_{name}", text, labels, registry=registry)

        self.drafts = by_source("num_drafts", "Verifications that had a draft.")
        self.drafted = by_source("num_draft_tokens", "Draft tokens verified.")
        self.accepted = by_source("num_accepted_tokens", "Draft tokens accepted.")
        #: Their ratio by position is what `holdcourse_drafter_expected_acceptance` promises.
        self.tried_at = by_source(
            "num_tried_tokens_per_pos",
            "Draft tokens verified after none that was rejected.",
            "position",
        )
        self.accepted_at = by_source(
            "num_accepted_tokens_per_pos", "Draft tokens accepted.", "position"
        )
        # By source, and position: looked up once, which takes longer than to count does.
        self._child: Callable[..., Counter] = cache(lambda of, *labels: of.labels(*labels))
        self.missed_deadlines = Counter(
            prefix + "draft_deadlines_missed",
            "Rounds that left without all drafts.",
            registry=registry,
        )
        self.step_rows = Histogram(
            prefix + "step_rows", "Rows of a packed forward.", buckets=_ROWS, registry=registry
        )
        self.step_seconds = Histogram(
            prefix + "step_seconds",
            "Time of a packed forward.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.running = Gauge(prefix + "num_requests_running", "With blocks.", registry=registry)
        self.waiting = Gauge(prefix + "num_requests_waiting", "Queued.", registry=registry)
        self.cohorts = Gauge(
            prefix + "num_cohorts", "Cohorts that verify in turn.", registry=registry
        )
        self.drafter_linked = Gauge(
            prefix + "drafter_linked", "1 while a drafter is linked.", registry=registry
        )

    def count_prompt(self, tokens: int, cached: int) -> None:
        """Count the tokens of a sequence that is admitted."""
        self.prefix_queries.inc(tokens)
        self.prefix_hits.inc(cached)

    def count_rounds(self, rounds: Iterable[tuple[DraftSource, int, int]], emitted: int) -> None:
        """Count the verifications of a step, which emitted so many tokens in all.

        Each is the source of its draft, how many tokens that had, and how many were accepted.
        """
        alike = Tally(rounds)
        self.rounds.inc(alike.total())
        self.generated.inc(emitted)
        for (source, proposed, accepted), count in alike.items():
            if not proposed:
                continue
            self._child(self.drafts, source).inc(count)
            self._child(self.drafted, source).inc(count * proposed)
            self._child(self.accepted, source).inc(count * accepted)
            for position in range(1, min(proposed, accepted + 1) + 1):
                self._child(self.tried_at, source, position).inc(count)
            for position in range(1, accepted + 1):
                self._child(self.accepted_at, source, position).inc(count)

    def observe_step(self, rows: int, seconds: float | None, scheduler: Scheduler) -> None:
        """Take one packed forward; None where its time is not known."""
        self.step_rows.observe(rows)
        if seconds is not None:
            self.step_seconds.observe(seconds)
        self.running.set(len(scheduler.running))
        self.waiting.set(scheduler.waiting)
