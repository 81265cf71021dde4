"""Latencies as clients see them."""

from __future__ import annotations

import time

from gateway.generation.output import ChoiceOutput, OutputDelta
from gateway.metrics import Metrics


class LatencyRecorder:
    """Measures one choice as the client sees it."""

    def __init__(self, metrics: Metrics, arrived: float) -> None:
        self._metrics = metrics
        self._arrived = arrived
        self._first: float | None = None
        self._last = arrived

    def see(self, piece: OutputDelta, generation: ChoiceOutput) -> None:
        now = time.monotonic()
        if piece.tokens:
            if self._first is None:
                self._first = now
                self._metrics.time_to_first_token.observe(now - self._arrived)
            else:
                self._metrics.chunk_gap.observe(now - self._last)
            self._last = now
        if piece.finish_reason is not None:
            self._metrics.e2e_latency.observe(now - self._arrived)
            self._metrics.success.labels(piece.finish_reason).inc()
            if self._first is not None and len(generation.output) > 1:
                gap = (self._last - self._first) / (len(generation.output) - 1)
                self._metrics.time_per_output_token.observe(gap)
