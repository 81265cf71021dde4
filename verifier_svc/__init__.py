"""The verifier: owns the target model, draws every token, and streams features to a drafter."""

from specserve import cpu_affinity as cpu_affinity
