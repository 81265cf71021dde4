"""Compiles the C++ kernels with the machine's own compiler, once for each level."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from speckernels.cpu_levels import INSTRUCTIONS
from specserve import logs
from specserve.cache_dir import cache_folder
from specserve.settings import Level

_FOLDER = Path(__file__).parent / "csrc"
# GCC 12 warns of its own AVX-512 intrinsics, hence -w.
_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-w")
_TIMEOUT = 300.0  # seconds

_log = logs.get(__name__)


class KernelError(Exception):
    """The kernels cannot be had; one sentence says why."""


def load_library(level: Level) -> ctypes.CDLL:
    """The kernels of a level, from the user's cache folder where they were compiled before.

    Raises:
        KernelError: there is no compiler, or it fails.
    """
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        raise KernelError(f"there is no C++ compiler {compiler}")
    arguments = (*_FLAGS, *INSTRUCTIONS[level].arguments)
    digest = hashlib.sha256(" ".join((compiler, platform.machine(), *arguments)).encode())
    for source in sorted([*_FOLDER.glob("*.cpp"), *_FOLDER.glob("*.h")]):
        digest.update(source.read_bytes())
    path = cache_folder("") / f"kernels-{level}-{digest.hexdigest()[:16]}.so"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Services that start together compile once.
        with path.with_suffix(".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                _log.info("compiling the kernels, once", cpu_level=level, cache=str(path.parent))
                _compile([compiler, *arguments], path)
        return ctypes.CDLL(str(path))
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
        told = next((line for line in lines if "error:" in line), lines[0])
        raise KernelError(f"{compiler} failed: {told}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError(str(error)) from None


def _compile(command: list[str], path: Path) -> None:
    """Compile beside the final place, so that others never load half a file."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        objects = {str(s): str(Path(folder, f"{s.stem}.o")) for s in _FOLDER.glob("*.cpp")}
        commands = [[*command, "-c", source, "-o", out] for source, out in objects.items()]
        with ThreadPoolExecutor(os.cpu_count()) as compilers:
            list(compilers.map(_run, commands))
        library = Path(folder, path.name)
        _run([*command, "-shared", *objects.values(), "-o", str(library)])
        library.replace(path)


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT)
