"""Has a figure above its bar."""

from __future__ import annotations

from loadtests.gpu_check.findings import Findings
from tests.loadtests.checked import Light


def run(bench: Light, findings: Findings) -> None:
    findings.speed("quick", 1.0, 2.0)
    findings.speed("slow", 3.0, 2.0)
