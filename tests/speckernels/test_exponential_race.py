"""The race as one fused kernel, which serves on GPUs, on a CPU."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from speckernels import sampling

Race = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture(autouse=True)
def unfused() -> Iterator[None]:
    sampling._fused.cache_clear()
    yield
    sampling._fused.cache_clear()


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
        wanted = sampling._winners(*race, None)
        ids = torch.arange(width)
        assert torch.equal(sampling._winners(*race, ids), wanted)
        assert torch.equal(sampling._fused()(*race, ids), wanted)


def warnings_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    warned: list[str] = []
    log = SimpleNamespace(warning=lambda event, reason: warned.append(reason))
    monkeypatch.setattr(sampling, "_log", log)
    return warned


def drawn(race: Race) -> torch.Tensor:
    return sampling._fused()(*race, torch.arange(race[0].shape[1]))


@pytest.mark.parametrize("wrong", ["no compiler", "it draws something else"])
def test_where_it_cannot_be_fused_torchs_operators_serve(
    monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        def fail(*race: torch.Tensor) -> torch.Tensor:
            if wrong == "no compiler":
                raise RuntimeError(f"{wrong}\nat ...")
            return sampling._winners(*race) + 1

        return fail

    warned = warnings_of(monkeypatch)
    monkeypatch.setattr(torch, "compile", broken)
    race = race_of(4, 50, 0)
    for _ in range(2):
        assert torch.equal(drawn(race), sampling._winners(*race, None))
    assert len(warned) == 1
    assert warned[0].endswith(wrong)


def test_each_shape_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variant for other shapes may draw something else though the first one does not."""
    tried: list[tuple[int, ...]] = []

    def wrong_from_six_rows(*_: Any, **__: Any) -> Any:
        return lambda *race: sampling._winners(*race) + (len(race[0]) > 5)

    def counted(*race: torch.Tensor) -> torch.Tensor:
        tried.append(tuple(race[0].shape))
        return sampling._winners(*race)

    warned = warnings_of(monkeypatch)
    monkeypatch.setattr(torch, "compile", wrong_from_six_rows)
    monkeypatch.setattr(sampling, "_in_chunks", counted)
    for rows in (4, 1, 4, 1):
        race = race_of(rows, 50, 0)
        assert torch.equal(drawn(race), sampling._winners(*race, None))
    assert tried == [(4, 50), (1, 50)]
    assert not warned
    for rows in (6, 4):
        race = race_of(rows, 50, 0)
        assert torch.equal(drawn(race), sampling._winners(*race, None))
    assert warned == ["it draws something else"]


@pytest.mark.parametrize("own", [False, True])
def test_operators_race_a_bounded_number_of_logits_at_a_time(
    monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    raced: list[int] = []
    plain = sampling._winners

    def counted(*race: torch.Tensor) -> torch.Tensor:
        raced.append(race[0].numel())
        return plain(*race)

    race = race_of(11, 60, 3)
    ids = torch.arange(60)
    ids = torch.stack([ids + row for row in range(11)]) if own else ids
    wanted = plain(*race, ids)
    monkeypatch.setattr(sampling, "_winners", counted)
    monkeypatch.setattr(sampling, "_RACED", 200)
    assert torch.equal(sampling._in_chunks(*race, ids), wanted)
    assert raced == [180, 180, 180, 120]


def test_variants_of_every_mode_and_thread_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are more than the eight that the compiler keeps by itself."""
    built: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        built.append(graph)
        return graph.forward

    def short(scaled: torch.Tensor, *keys: torch.Tensor) -> torch.Tensor:
        return (scaled + keys[-1]).argmin(-1)

    def count(threads: int) -> int:
        begun = len(built)
        torch.set_num_threads(threads)
        for mode, rows in product((torch.enable_grad, torch.inference_mode), (3, 1, 5)):
            race, shared = race_of(rows, 97, 0), torch.arange(97)
            for ids in (shared, shared.repeat(rows, 1)):
                with mode():
                    sampling._fused()(*race, ids)
        return len(built) - begun

    warned, before = warnings_of(monkeypatch), torch.get_num_threads()
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **how: compiled(f, backend=backend, **how))
    monkeypatch.setattr(sampling, "_winners", short)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        made = [one.submit(count, 1).result(), other.submit(count, 2).result()]
        assert (made, one.submit(count, 1).result()) == ([8, 8], 0)
    # Threads to come have as many as were set last.
    torch.set_num_threads(before)
    assert not warned


@pytest.mark.slow
def test_more_variants_than_the_compiler_keeps_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler here")
    warned = warnings_of(monkeypatch)
    # Of this thread alone, where a thread has limits of its own.
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)
    monkeypatch.setattr(sampling, "_VARIANTS", 1)
    for rows in (3, 1):
        race = race_of(rows, 97, 0)
        assert torch.equal(drawn(race), sampling._winners(*race, None))
    assert len(warned) == 1
    assert "Limit" in warned[0]
