"""Levels of instructions that the kernels are compiled for, and which of them this CPU has."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from specserve.settings import Level

LEVELS: tuple[Level, ...] = get_args(Level)


@dataclass(frozen=True, slots=True)
class Instructions:
    """What a level is compiled with, and the flags of /proc/cpuinfo that it needs."""

    arguments: tuple[str, ...]
    flags: frozenset[str]


_AVX2 = frozenset(("avx2", "fma", "f16c", "bmi1", "bmi2", "movbe", "abm"))
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_BF16 = _AVX512 | {"avx512_bf16"}
_V4_BF16 = ("-march=x86-64-v4", "-mavx512bf16")

#: `plain` is what every CPU of the architecture has: SSE2, or NEON on AArch64.
INSTRUCTIONS: dict[Level, Instructions] = {
    "plain": Instructions((), frozenset()),
    "avx2": Instructions(("-march=x86-64-v3",), _AVX2),
    "avx512": Instructions(("-march=x86-64-v4",), _AVX512),
    "avx512_bf16": Instructions(_V4_BF16, _BF16),
    "amx": Instructions((*_V4_BF16, "-mamx-tile", "-mamx-bf16"), _BF16 | {"amx_tile", "amx_bf16"}),
}


def levels_here() -> tuple[Level, ...]:
    """The levels that this CPU has, in order."""
    flags = _cpu_info("flags") if platform.machine() == "x86_64" else frozenset()
    return tuple(level for level in LEVELS if INSTRUCTIONS[level].flags <= flags)


def fastest_first() -> list[Level]:
    """The levels that this CPU has, the fastest one first.

    Intel's cores multiply pairs of bf16 elements at half the rate of fp32 ones, and so gain nothing
    from them outside of tiles: rows of a prompt took 1.4 times as long.
    """
    levels = list(reversed(levels_here()))
    if "GenuineIntel" in _cpu_info("vendor_id") and "avx512_bf16" in levels:
        levels.remove("avx512_bf16")
        levels.insert(levels.index("avx512") + 1, "avx512_bf16")
    return levels


def _cpu_info(field: str) -> frozenset[str]:
    """The words of a field of /proc/cpuinfo, of the first CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = next((line for line in lines if line.startswith(field)), "")
    return frozenset(found.partition(":")[2].split())
