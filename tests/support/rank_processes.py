"""Ranks of a verifier as processes, started as torchrun does, from one that has all imports."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.support.ports import free_port

_PR_SET_PDEATHSIG = 1
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["verifier_svc.__main__"])


def meeting_point() -> dict[str, str]:
    """The variables of two ranks that nobody else meets."""
    return {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }


def start_rank(
    rank: int, meeting: Mapping[str, str], folder: Path, log: Path, *flags: str
) -> BaseProcess:
    """`python -m verifier_svc --target folder`, in fp32 unless flags say otherwise."""
    variables = {**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    argv = ["verifier_svc", "--target", str(folder), "--dtype", "float32", *flags]
    process = _context.Process(target=_serve, args=(variables, argv, log), daemon=True)
    process.start()
    return process


def end(process: BaseProcess) -> None:
    """Kill what is left of a rank."""
    process.kill()
    process.join()


def _serve(variables: Mapping[str, str], argv: list[str], log: Path) -> None:
    # The process that forked this one ends with the test run.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with log.open("wb") as output:
        os.dup2(output.fileno(), sys.stderr.fileno())
    os.environ.update(variables)
    sys.argv = argv
    import torch

    from specserve import server
    from verifier_svc.__main__ import main

    torch.set_num_threads(1)
    server.run("verifier_svc", main)
