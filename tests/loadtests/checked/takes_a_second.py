"""Takes its time."""

from __future__ import annotations

import time

from loadtests.gpu_check.findings import Findings
from tests.loadtests.checked import Light


def run(bench: Light, findings: Findings) -> None:
    time.sleep(1.01)
    findings.holds("done", True)
