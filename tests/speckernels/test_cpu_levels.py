"""Which kernels a CPU gets."""

from __future__ import annotations

from pathlib import Path

import pytest

import speckernels as kernels
from speckernels import cpu_levels
from speckernels.cpu_levels import INSTRUCTIONS, LEVELS, fastest_first, levels_here
from specserve.settings import Level, StartError


def on_cpu(monkeypatch: pytest.MonkeyPatch, level: Level, vendor: str) -> None:
    flags = INSTRUCTIONS[level].flags | {"fpu", "sse2"}
    told = {"flags": flags, "vendor_id": frozenset([vendor])}
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(cpu_levels, "_cpu_info", lambda field: told[field])


@pytest.mark.parametrize("level", LEVELS)
def test_a_cpu_has_a_level_and_those_before_it(
    monkeypatch: pytest.MonkeyPatch, level: Level
) -> None:
    on_cpu(monkeypatch, level, "AuthenticAMD")
    assert levels_here() == LEVELS[: LEVELS.index(level) + 1]
    assert fastest_first() == list(reversed(levels_here()))


def test_pairs_of_bf16_elements_are_fast_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu(monkeypatch, "avx512_bf16", "GenuineIntel")
    assert fastest_first() == ["avx512", "avx512_bf16", "avx2", "plain"]
    on_cpu(monkeypatch, "amx", "GenuineIntel")
    assert fastest_first()[0] == "amx"
    on_cpu(monkeypatch, "avx2", "GenuineIntel")
    assert fastest_first() == ["avx2", "plain"]


def test_other_architectures_have_plain_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert levels_here() == ("plain",)


def test_levels_are_read_from_what_the_system_tells() -> None:
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    assert ("avx2" in levels_here()) == (" avx2 " in told and " fma " in told)


def test_a_level_that_is_not_there_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu(monkeypatch, "avx2", "AuthenticAMD")
    with pytest.raises(StartError, match="--cpu-level: this CPU has no amx, but plain, avx2"):
        kernels.load_kernels("auto", "amx")
    assert kernels.cpu_level() is None
