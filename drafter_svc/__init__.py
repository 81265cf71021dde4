"""Drafter service: proposes tokens by running an EAGLE-3.1 chain on the target's features."""

from specserve import cpu_affinity as cpu_affinity
