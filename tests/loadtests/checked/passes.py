"""Passes."""

from __future__ import annotations

from loadtests.gpu_check.findings import Findings
from tests.loadtests.checked import Light


def run(bench: Light, findings: Findings) -> None:
    findings.at_least("far", 9.0, 1.0)
    findings.speed("near", 1.9, 2.0)
