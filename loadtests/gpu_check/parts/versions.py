"""Versions, memory, and how fast the device reads and multiplies. Imports were tried before."""

from __future__ import annotations

import torch

from loadtests.common.provenance import provenance
from loadtests.gpu_check.bench import Bench
from loadtests.gpu_check.findings import Findings
from loadtests.peers.memory_bandwidth import bandwidth

_GIB = 1 << 30


@torch.inference_mode()
def run(bench: Bench, findings: Findings) -> None:
    """See the module."""
    machine = provenance()
    name = machine["machine"]["cpu"]
    if bench.on_gpu:
        name = torch.cuda.get_device_name(bench.device)
        findings.know(
            capability=torch.cuda.get_device_capability(bench.device),
            cuda=torch.version.cuda,
            count=torch.cuda.device_count(),
        )
        free, total = torch.cuda.mem_get_info(bench.device)
        findings.at_least("free memory", free / _GIB, bench.shapes.free, "GiB")
        findings.know(free=free, total=total)
    findings.know(device=name, on_gpu=bench.on_gpu, provenance=machine)
    findings.holds("all packages can be imported", True)
    memory, products = bandwidth(bench.device, bench.shapes.measured), _products(bench)
    findings.know(memory_rate=memory, product_rate=products)
    findings.note("memory is read at", memory / 1e12, "TB/s")
    findings.note("products in bf16", products / 1e12, "TFLOP/s")


def _products(bench: Bench) -> float:
    """Operations a second of a large product in bf16."""
    size = 2 * bench.shapes.matrix
    one, other = torch.randn(2, size, size, device=bench.device).to(torch.bfloat16)
    return 2 * size**3 / (1e-3 * bench.milliseconds(lambda: one @ other))
