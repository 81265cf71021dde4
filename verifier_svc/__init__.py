"""The verifier: owns the target model, draws every token, and streams features to a drafter."""

from specwire import cpus as cpus
