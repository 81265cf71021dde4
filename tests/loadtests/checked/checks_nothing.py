"""Checks nothing."""

from __future__ import annotations

from loadtests.gpu_check.findings import Findings
from tests.loadtests.checked import Light


def run(bench: Light, findings: Findings) -> None:
    findings.know(nothing="checked")
