"""What is left at the end, what each part took at most, and what the driver says."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess

import torch

from loadtests.gpu_check.bench import Bench
from loadtests.gpu_check.findings import Findings, read
from loadtests.gpu_check.parts import PARTS

_MIB = 1 << 20
_LEFT = 256.0


def run(bench: Bench, findings: Findings) -> None:
    """See the module."""
    taken = {
        part.name: read(bench.options.out / f"{part.name}.json")[1].get("reserved_at_most", 0)
        for part in PARTS
    }
    findings.know(taken=taken)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    findings.note("memory of the process at most", most, "MiB")
    if not bench.on_gpu:
        findings.holds("no device's memory", True)
        return
    for name, size in taken.items():
        if size:
            findings.note(f"{name} took at most", size / _MIB, "MiB")
    left = torch.cuda.memory_allocated(bench.device) / _MIB
    findings.at_most("tensors that are left", left, _LEFT, "MiB")
    findings.note("with graphs and workspaces", bench.reserved(), "MiB")
    stats = json.dumps(torch.cuda.memory_stats(bench.device), indent=1)
    (bench.options.out / "memory-stats.json").write_text(stats, encoding="utf-8")
    if tool := shutil.which("nvidia-smi"):
        done = subprocess.run([tool], capture_output=True, text=True, check=False)
        (bench.options.out / "nvidia-smi.txt").write_text(done.stdout, encoding="utf-8")
