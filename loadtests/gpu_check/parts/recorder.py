"""Recorded work: dropped and recorded again, beside another thread, after a failure."""

from __future__ import annotations

import gc
import threading

import torch

from loadtests.gpu_check import system
from loadtests.gpu_check.bench import Bench, apart
from loadtests.gpu_check.findings import Findings
from speckernels import CaptureFn, to_device_async, to_host
from speckernels.cuda_graph import Tensors

# MiB that dropped graphs may leave behind: one workspace of the library for products.
_LEFT = 64.0
# Before torch 2.12 the allocator believes for ever in a capture that failed.
_LASTS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12)
# As many small transfers meanwhile as show that another thread got through.
_TRANSFERS = 20


@torch.inference_mode()
def run(bench: Bench, findings: Findings) -> None:
    """See the module."""
    torch.manual_seed(0)
    work = _Work(bench.shapes.matrix, bench.device)
    record = system.recorder(bench.device)
    _again(bench, findings, work, record)
    _beside_a_thread(bench, findings, work, record)
    if bench.on_gpu:
        _on_each_device(findings, bench.shapes.matrix)
    _after_a_failure(bench, findings, work, record)


class _Work:
    """Products over a tensor that stays where it is."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.rows = torch.randn(16, size, device=device)
        self._weight = torch.randn(size, size, device=device) / size**0.5

    def __call__(self) -> Tensors:
        return ((self.rows @ self._weight).relu() @ self._weight, self.rows.square().sum(-1))

    def renewed(self, record: CaptureFn) -> float:
        """Record it, change the tensor, and replay: how far that is from what is called."""
        results, replay = record(self)
        self.rows.normal_()
        replay()
        return max(map(apart, results, self()))


def _again(bench: Bench, findings: Findings, work: _Work, record: CaptureFn) -> None:
    """Graphs that are dropped, and others of the same recorder after them."""
    far, begun = 0.0, 0.0
    for number in range(bench.shapes.records):
        far = max(far, work.renewed(record))
        gc.collect()
        if number == 1:
            begun = bench.reserved()
    findings.at_most(f"recorded {bench.shapes.records} times, dropped each time: error", far, 1e-3)
    findings.speed("memory that this leaves", bench.reserved() - begun, _LEFT, "MiB")


def _beside_a_thread(bench: Bench, findings: Findings, work: _Work, record: CaptureFn) -> None:
    """Another thread moves numbers to the device and back while work is recorded."""
    ended, counts, wrong = threading.Event(), [0], []

    def transfer() -> None:
        while not ended.is_set():
            numbers = [counts[0], 7, 11]
            try:
                (back,) = to_host(to_device_async(numbers, bench.device) + 1)
            except RuntimeError as error:
                wrong.append(str(error).partition("\n")[0])
                return
            if back.tolist() != [n + 1 for n in numbers]:
                wrong.append(f"{back.tolist()} came back")
            counts[0] += 1

    thread = threading.Thread(target=transfer)
    thread.start()
    far: list[float] = []
    try:
        while thread.is_alive() and (counts[0] < _TRANSFERS or not far):
            far.append(work.renewed(record))
    finally:
        ended.set()
        thread.join()
    findings.holds("another thread's numbers came and went", not wrong, "; ".join(wrong[:1]))
    findings.at_most("recorded meanwhile: error", max(far, default=1.0), 1e-3)


def _after_a_failure(bench: Bench, findings: Findings, work: _Work, record: CaptureFn) -> None:
    """Work that cannot be recorded harms neither the stream nor what was recorded before."""
    results, replay = record(work)
    before = torch.cuda.current_stream(bench.device) if bench.on_gpu else None

    def waits() -> Tensors:
        total = work()[0].sum()
        if not bench.on_gpu:
            raise RuntimeError("a CPU waits for nothing")
        return (torch.full_like(total, total.item()),)

    try:
        record(waits)
        failed = False
    except RuntimeError:
        failed = True
    findings.holds("what waits for the device cannot be recorded", failed)
    now = torch.cuda.current_stream(bench.device) if bench.on_gpu else None
    findings.holds("the stream is the one before", now == before)
    work.rows.normal_()
    replay()
    findings.at_most("what was recorded before: error", max(map(apart, results, work())), 1e-3)
    try:
        far = work.renewed(system.recorder(bench.device))
    except RuntimeError as error:
        if _LASTS:
            raise
        said = str(error).partition("\n")[0]
        findings.holds("torch 2.11 records nothing more in this process", True, said)
    else:
        findings.at_most("recorded after it: error", far, 1e-3)
    # Whatever has been claimed for what failed, other parts are not to meet it.
    findings.know(spoiled=True)


def _on_each_device(findings: Findings, size: int) -> None:
    """Every GPU by its number, whichever is the current one."""
    for number in range(torch.cuda.device_count()):
        device = torch.device("cuda", number)
        far = _Work(size, device).renewed(system.recorder(device))
        findings.at_most(f"recorded on {device}: error", far, 1e-3)
