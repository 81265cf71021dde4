"""Prometheus metrics of the verifier."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from specwire.draft import DraftSource
from verifier_svc.scheduler import Scheduler

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

    def count_round(self, source: DraftSource, proposed: int, accepted: int, emitted: int) -> None:
        """Count one verification of one sequence, with a draft of `source` or without."""
        self.rounds.inc()
        self.generated.inc(emitted)
        if proposed:
            self.drafts.labels(source).inc()
            self.drafted.labels(source).inc(proposed)
            self.accepted.labels(source).inc(accepted)
            for position in range(1, min(proposed, accepted + 1) + 1):
                self.tried_at.labels(source, position).inc()
            for position in range(1, accepted + 1):
                self.accepted_at.labels(source, position).inc()

    def observe_step(self, rows: int, seconds: float, scheduler: Scheduler) -> None:
        """Take one packed forward."""
        self.step_rows.observe(rows)
        self.step_seconds.observe(seconds)
        self.running.set(len(scheduler.running))
        self.waiting.set(scheduler.waiting)
