"""Ends its process."""

from __future__ import annotations

import os

from loadtests.gpu_check.findings import Findings
from tests.loadtests.checked import Light


def run(bench: Light, findings: Findings) -> None:
    os._exit(7)
