"""The race as one fused kernel, which serves on GPUs, on a CPU."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from specwire.kernels import drawing

Race = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture(autouse=True)
def unfused() -> Iterator[None]:
    drawing._fused.cache_clear()
    yield
    drawing._fused.cache_clear()


def race_of(rows: int, width: int, seed: int) -> Race:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randint(-(2**63), 2**63 - 1, (3, rows, 1), generator=generator)
    scaled = torch.randn(rows, width, generator=generator) * (1 + seed % 4)
    # Rows of equal logits are decided by the noise alone.
    scaled[seed % rows] = 0.0
    return scaled, keys[0], keys[1] & 0xFFFFF, keys[2] & 3


@pytest.mark.slow
def test_the_fused_race_has_the_same_winners() -> None:
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler here")
    for seed, (rows, width) in enumerate([(5, 1003), (3, 4096), (8, 97), (5, 1003)]):
        race = race_of(rows, width, seed)
        wanted = drawing._winners(*race, None)
        ids = torch.arange(width)
        assert torch.equal(drawing._winners(*race, ids), wanted)
        assert torch.equal(drawing._fused()(*race, ids), wanted)


@pytest.mark.parametrize("wrong", ["no compiler", "it draws something else"])
def test_where_it_cannot_be_fused_torchs_operators_serve(
    monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        def fail(*race: torch.Tensor) -> torch.Tensor:
            if wrong == "no compiler":
                raise RuntimeError(wrong)
            return drawing._winners(*race) + 1

        return fail

    warned: list[str] = []
    log = SimpleNamespace(warning=lambda event, reason: warned.append(reason))
    monkeypatch.setattr(drawing, "_log", log)
    monkeypatch.setattr(torch, "compile", broken)
    race = race_of(4, 50, 0)
    for _ in range(2):
        winners = drawing._fused()(*race, torch.arange(50))
        assert torch.equal(winners, drawing._winners(*race, None))
    assert warned == [wrong]
