"""The process that parts run in: one after the other, until one of them ends it."""

from __future__ import annotations

import faulthandler
import gc
import importlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from loadtests.gpu_check.findings import Findings
from loadtests.gpu_check.options import Options
from loadtests.gpu_check.packages import refused, versions

if TYPE_CHECKING:
    from loadtests.gpu_check.bench import Bench

LOG = "log.txt"
# What a part sends when it is through; anything else is what it does meanwhile.
DONE = None


#: Makes what parts are given; None, with findings that say why, where that cannot be.
Prepare = Callable[[Options, Findings], Any]


def prepare(options: Options, findings: Findings) -> Bench | None:
    """Import everything, and see what the device is; see `Prepare`."""
    findings.know(packages=", ".join(f"{name} {number}" for name, number in versions().items()))
    for sentence in refused(options):
        findings.holds(sentence, False)
    if findings.checks:
        return None
    from loadtests.gpu_check.bench import Bench

    return Bench.of(options)


def serve(connection: Connection, options: Options, prepare: Prepare) -> None:
    """Run the parts that come by the connection, each with its limit in seconds.

    All that is printed or logged goes to the log, where a part that takes too long leaves what its
    threads were at. The processes that a part starts are in the group of this one.
    """
    os.setsid()
    log = os.open(options.out / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    bench: Any = None
    while True:
        try:
            part, limit = connection.recv()
        except EOFError:
            return
        print(f"--- {part.name}", flush=True)
        began = time.process_time()
        findings = Findings(options.out / f"{part.name}.json", tell=connection.send)
        try:
            if bench is None:
                bench = prepare(options, findings)
            if bench is not None:
                faulthandler.dump_traceback_later(limit, exit=True, file=sys.stderr)
                findings.fast = bench.on_gpu
                importlib.import_module(part.module).run(bench, findings)
        except Exception as error:
            traceback.print_exc()
            findings.holds(_sentence(error), False)
        faulthandler.cancel_dump_traceback_later()
        findings.know(cpu_seconds=round(time.process_time() - began, 2), **_clear())
        connection.send(DONE)


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _clear() -> Mapping[str, int]:
    """Give back what the part has left; returns what it took of the device at most, in bytes."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    torch.cuda.empty_cache()
    taken = {
        "reserved_at_most": torch.cuda.max_memory_reserved(),
        "allocated_after": torch.cuda.memory_allocated(),
    }
    torch.cuda.reset_peak_memory_stats()
    return taken
