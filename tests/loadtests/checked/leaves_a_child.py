"""Waits for a process that never ends."""

from __future__ import annotations

import subprocess

from loadtests.gpu_check.findings import Findings
from tests.loadtests.checked import Light


def run(bench: Light, findings: Findings) -> None:
    child = subprocess.Popen(["sleep", "600"])
    (bench.options.out / "child").write_text(str(child.pid))
    child.wait()
