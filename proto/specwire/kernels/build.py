"""Compiles the C++ kernels with the machine's own compiler, once for each of its kinds."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from specwire import logs
from specwire.cache import cache_folder

_log = logs.get(__name__)

_SOURCES = (
    "attend.cpp", "best.cpp", "decoder.cpp", "drafter.cpp", "draw.cpp", "layer.cpp", "linear.cpp",
)  # fmt: skip
_HEADERS = (
    "attend.h", "attend_pairs.h", "attend_tiles.h", "decoder.h", "draw.h", "element.h",
    "lane_products.h", "lanes.h", "linear.h", "philox.h", "rows.h", "segment.h",
    "softmax.h", "tile_products.h", "tiles.h",
)  # fmt: skip
# GCC 12 warns of its own AVX-512 intrinsics, hence -w.
_FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp",
    "-shared", "-fPIC", "-w",
)  # fmt: skip
_TIMEOUT = 120.0


class KernelError(Exception):
    """The kernels cannot be had; one sentence says why."""


def load() -> ctypes.CDLL:
    """The compiled kernels, from the user's cache folder where they were compiled before.

    Raises:
        KernelError: there is no compiler, or it fails.
    """
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        raise KernelError(f"there is no C++ compiler {compiler}")
    folder = Path(__file__).parent
    digest = hashlib.sha256(" ".join((compiler, *_FLAGS, _machine())).encode())
    for name in (*_SOURCES, *_HEADERS):
        digest.update((folder / name).read_bytes())
    path = cache_folder("") / f"kernels-{digest.hexdigest()[:16]}.so"
    try:
        if not path.exists():
            _log.info("compiling the kernels, once")
            _compile(compiler, [folder / name for name in _SOURCES], path)
        return ctypes.CDLL(str(path))
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
        raise KernelError(f"{compiler} failed: {lines[0]}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError(str(error)) from None


def _compile(compiler: str, sources: list[Path], path: Path) -> None:
    """Compile beside the final place, so that others never load half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        out = Path(folder) / path.name
        command = [compiler, *_FLAGS, *map(str, sources), "-o", str(out)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT)
        out.replace(path)


def _machine() -> str:
    """What -march=native depends on: homes are shared between machines of several kinds."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {flags}"
