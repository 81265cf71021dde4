"""What Prometheus is told of rounds."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from specwire.draft import DraftSource
from verifier_svc.metrics import Metrics


def test_drafts_are_counted_by_source() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.count_round(DraftSource.CHAIN, 5, 2, 3)
    metrics.count_round(DraftSource.LOOKUP, 8, 8, 9)
    metrics.count_round(DraftSource.CHAIN, 0, 0, 1)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"holdcourse_verifier_{name}_total", labels)

    assert (value("rounds"), value("generation_tokens")) == (3, 13)
    for source, counts in (("chain", (1, 5, 2)), ("lookup", (1, 8, 8))):
        names = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")
        assert tuple(value(f"spec_decode_{name}", source=source) for name in names) == counts
    at = {"source": "chain", "position": "2"}
    assert value("spec_decode_num_tried_tokens_per_pos", **at) == 1
    assert value("spec_decode_num_accepted_tokens_per_pos", **at) == 1
    at["position"] = "3"
    assert value("spec_decode_num_tried_tokens_per_pos", **at) == 1, "the one that was rejected"
    assert value("spec_decode_num_accepted_tokens_per_pos", **at) is None
    at["position"] = "4"
    assert value("spec_decode_num_tried_tokens_per_pos", **at) is None
