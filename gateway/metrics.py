"""Prometheus metrics, named as the field names them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

TTFT_BUCKETS = (0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1, 2, 4, 8, 15, 30, 60)
TOKEN_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.4, 0.8, 1.6, 3.2)
E2E_BUCKETS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)


class Metrics:
    """The gateway's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"holdcourse_{name}", text, buckets=buckets, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"holdcourse_{name}", text, labels, registry=registry)

        self.time_to_first_token = histogram(
            "time_to_first_token_seconds", "From the request to its first token.", TTFT_BUCKETS
        )
        self.chunk_gap = histogram(
            "chunk_gap_seconds", "Between chunks, which hold the tokens of a round.", TOKEN_BUCKETS
        )
        self.time_per_output_token = histogram(
            "time_per_output_token_seconds",
            "After the first token: time by tokens of a choice.",
            TOKEN_BUCKETS,
        )
        self.e2e_latency = histogram(
            "e2e_request_latency_seconds", "From the request to the end of a choice.", E2E_BUCKETS
        )
        self.success = counter("request_success", "Choices that ended well.", "finished_reason")
        self.failure = counter("request_failure", "Generations that failed.", "status")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts.")
        self.generation_tokens = counter("generation_tokens", "Tokens of outputs.")
        self.draft_tokens = counter(
            "spec_decode_num_draft_tokens", "Draft tokens verified.", "source"
        )
        self.accepted_tokens = counter(
            "spec_decode_num_accepted_tokens", "Draft tokens that stood.", "source"
        )
        self.failovers = counter("failovers", "Generations that were placed again.")
        self.running = Gauge(
            "holdcourse_num_requests_running", "Choices being generated.", registry=registry
        )
        self.verifiers_up = Gauge(
            "holdcourse_verifiers_up", "Verifiers that take requests.", registry=registry
        )
        self.redis_up = Gauge("holdcourse_redis_up", "1 while Redis answers.", registry=registry)
