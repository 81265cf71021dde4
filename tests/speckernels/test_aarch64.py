"""The plain kernels on AArch64, by an emulator, against those of this machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from speckernels import library

_CROSS = shutil.which("aarch64-linux-gnu-g++")
_EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
_KERNELS = Path(library.__file__).parent / "csrc"

pytestmark = pytest.mark.skipif(
    not (_CROSS and _EMULATOR and shutil.which("g++")),
    reason="needs g++, aarch64-linux-gnu-g++ and qemu-aarch64",
)


def printed(compiler: str, folder: Path, *emulator: str) -> list[list[str]]:
    """What the driver prints, compiled by `compiler`: words by line."""
    driver = folder / Path(compiler).name
    sources = [str(source) for source in _KERNELS.glob("*.cpp")]
    flags = ("-std=c++17", "-O2", "-fopenmp", "-static", "-w", f"-I{_KERNELS}")
    here = str(Path(__file__).with_name("kernel_driver.cpp"))
    subprocess.run([compiler, *flags, here, *sources, "-o", str(driver)], check=True)
    run = subprocess.run([*emulator, str(driver)], check=True, capture_output=True, text=True)
    return [line.split() for line in run.stdout.splitlines()]


@pytest.mark.slow
def test_kernels_give_on_aarch64_what_they_give_here(tmp_path: Path) -> None:
    assert _CROSS is not None
    assert _EMULATOR is not None
    here = printed("g++", tmp_path)
    there = printed(_CROSS, tmp_path, _EMULATOR)
    kinds = ["linear", "rows", "rows", "prompt", "prompt", "draws", "draws", "norm"]
    assert [line[0] for line in here] == kinds
    for ours, theirs in zip(here, there, strict=True):
        assert ours[0] == theirs[0]
        if ours[0] == "draws":
            assert ours == theirs
        else:  # products are added in one rounding there, in two here
            wanted = [float(word) for word in ours[1:]]
            assert [float(word) for word in theirs[1:]] == pytest.approx(wanted, rel=0.02, abs=0.01)
