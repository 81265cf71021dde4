"""What Prometheus is told of rounds."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from specwire.messages import DraftSource
from verifier_svc.metrics import Metrics


def test_drafts_are_counted_by_source() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    chain, lookup = DraftSource.CHAIN, DraftSource.LOOKUP
    metrics.count_rounds([(chain, 5, 2), (lookup, 8, 8), (chain, 0, 0)], 13)

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


def test_rounds_that_are_alike_count_as_often_as_they_come() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for _ in range(2):
        metrics.count_rounds([(DraftSource.CHAIN, 3, 1)] * 5 + [(DraftSource.CHAIN, 3, 3)], 14)
    counts = [
        registry.get_sample_value(
            f"holdcourse_verifier_spec_decode_{name}_tokens_per_pos_total",
            {"source": "chain", "position": position},
        )
        for name in ("num_tried", "num_accepted")
        for position in "123"
    ]
    assert counts == [12, 12, 2, 12, 2, 2]
    assert registry.get_sample_value("holdcourse_verifier_rounds_total") == 12
