"""Drafter service: proposes tokens by running an EAGLE-3.1 chain on the target's features."""

from specwire import cpus as cpus
