"""What Prometheus sees of the drafter."""

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

CHAINS = Counter("holdcourse_drafter_chains", "Chains run.")
LOOKUPS = Counter(
    "holdcourse_drafter_lookups", "Searches for a repeated suffix by what they found.", ["result"]
)
DRAFT_TOKENS = Counter("holdcourse_drafter_draft_tokens", "Tokens proposed.", ["source"])
ROWS = Counter("holdcourse_drafter_rows", "Real entries taken.", ["way"])
NEEDS = Counter("holdcourse_drafter_needs", "Messages refused because they left a gap.")
EVICTIONS = Counter("holdcourse_drafter_evictions", "Sequences evicted to make room.")
REFUSALS = Counter("holdcourse_drafter_refusals", "Sequences refused.")
EXPECTED_ACCEPTANCE = Gauge(
    "holdcourse_drafter_expected_acceptance",
    "Chance of a chain's token to be accepted if all before it were, as the checkpoint declares.",
    ["position"],
)
LINKS = Gauge("holdcourse_drafter_links", "Verifiers connected.")
SEQUENCES = Gauge("holdcourse_drafter_sequences", "Sequences held.")
KV_BYTES = Gauge("holdcourse_drafter_kv_bytes", "Memory of all KV slabs.")
BATCH_SIZE = Histogram(
    "holdcourse_drafter_batch_size", "Chains run together.", buckets=(1, 2, 4, 8, 16, 32, 64, 128)
)
QUEUE_SECONDS = Histogram(
    "holdcourse_drafter_queue_seconds", "Request received to computation begun.", buckets=_SECONDS
)
COMPUTE_SECONDS = Histogram(
    "holdcourse_drafter_compute_seconds", "Computation of a batch of requests.", buckets=_SECONDS
)
