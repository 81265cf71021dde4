"""Raises."""

from __future__ import annotations

from loadtests.gpu_check.findings import Findings
from tests.loadtests.checked import Light


def run(bench: Light, findings: Findings) -> None:
    findings.holds("before", True)
    raise ValueError("no\nmore")
