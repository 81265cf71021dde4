"""Packed rows as FlashAttention takes them: by the rules that it documents, without a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import structlog
import torch
from hypothesis import given
from hypothesis import strategies as st

import speckernels as kernels
from speckernels import AttentionMetadata, QuerySegment, VarlenTables, attention, flash_attention
from speckernels.flash_attention import packed_row_table, varlen_table
from tests.support.fake_flash_attention import flash_forward, serve_flash

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SHAPES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=6)


def segments_of(counts: list[int], lengths: list[int]) -> list[QuerySegment]:
    """Segments whose keys lie in the reverse order of their rows, with a gap between them."""
    segments, row, slot = [], 0, 2 + sum(counts) + sum(lengths) + 3 * len(counts)
    for count, length in zip(counts, lengths, strict=True):
        slot -= length + count + 2
        segments.append(QuerySegment(row, count, slot, length))
        row += count
    return segments


@given(SHAPES)
def test_a_table_says_where_segments_are(shape: list[tuple[int, int]]) -> None:
    segments = segments_of([count for count, _ in shape], [length for _, length in shape])
    starts, slots, lengths = varlen_table(segments)
    assert len(starts) == len(slots) == len(lengths) == len(segments) + 1
    parts = list(zip(starts, starts[1:], slots, lengths, strict=False))
    assert parts == [(s.row, s.row + s.count, s.start, s.length + s.count - 1) for s in segments]


@given(SHAPES, st.integers(0, 6))
def test_rows_are_segments_and_those_that_fill_up_attend_to_the_spare_slot(
    shape: list[tuple[int, int]], filling: int
) -> None:
    segments = segments_of([count for count, _ in shape], [length for _, length in shape])
    rows = sum(count for count, _ in shape)
    slots, lengths = packed_row_table(segments, rows + filling, 99)
    wanted = [(s.start, s.length + i) for s in segments for i in range(s.count)]
    parts = list(zip(slots, lengths, strict=True))
    assert parts[:rows] == wanted
    assert parts[rows:] == [(99, 1)] * (filling + 1)


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("window", [None, 6, 9])
@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("counts", [[1], [1, 1, 1], [4, 1, 7], [40, 2]])
def test_rows_attend_as_without_it(
    heads: int,
    counts: list[int],
    window: int | None,
    sinks: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    segments = segments_of(counts, [1, 30, 8][: len(counts)])
    query = torch.randn(sum(counts), heads, 16)
    keys, values = torch.randn(2, 120, 2, 16)
    asked: dict[str, Any] = {"window": window, "sinks": torch.randn(heads) if sinks else None}
    wanted = kernels.paged_attention(query, keys, values, AttentionMetadata(segments), 0.3, **asked)
    serve_flash(monkeypatch)
    monkeypatch.setattr(attention, "_attend_by_kernel", None)
    got = kernels.paged_attention(query, keys, values, AttentionMetadata(segments), 0.3, **asked)
    torch.testing.assert_close(got, wanted)
    # The same rows, each a segment of its own.
    table = torch.tensor(packed_row_table(segments, len(query), 0), dtype=torch.int32)
    starts = torch.arange(len(query) + 1, dtype=torch.int32)
    reach = AttentionMetadata.recorded(
        len(query), VarlenTables(starts, table[0], table[1, :-1], 1, 120)
    )
    alone = kernels.paged_attention(query, keys, values, reach, 0.3, **asked)
    torch.testing.assert_close(alone, wanted)


def test_a_soft_cap_is_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, keys, values = torch.randn(5, 2, 16), *torch.randn(2, 40, 2, 16)
    reach = AttentionMetadata([QuerySegment(0, 5, 3, 9)])
    wanted = kernels.paged_attention(query, keys, values, reach, 0.3, softcap=0.5)
    serve_flash(monkeypatch)
    monkeypatch.setattr(flash_attention, "_forward", None)
    got = kernels.paged_attention(query, keys, values, reach, 0.3, softcap=0.5)
    assert torch.equal(got, wanted)


def test_a_cpu_and_full_precision_are_left_to_others() -> None:
    assert not kernels.flash_serves(CPU, torch.bfloat16, 4, 2, 64)
    assert not kernels.flash_serves(torch.device("cuda"), torch.float32, 4, 2, 64)
    refusal = kernels.flash_refusal(CPU, torch.bfloat16, 4, 2, 64)
    assert refusal == "FlashAttention is for GPUs, in bfloat16 or float16"


def off(what: str) -> Any:
    """A kernel that is wrong in one of its results, about windows, or about many keys of a row."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        if what == "window" and kwargs["window_size_left"] >= 0:
            kwargs["window_size_left"] += 1
        if what == "splits" and args[5] == 1:
            kwargs["seqused_k"] = kwargs["seqused_k"].clamp(max=450)
        out, sums, *rest = flash_forward(*args, **kwargs)
        return out * (1.1 if what == "out" else 1), sums + (what == "sums"), *rest

    return forward


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("windowed", [False, True])
def test_where_it_differs_in_what_is_asked_for_it_is_not_used(
    windowed: bool, sinks: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tried() -> bool:
        return flash_attention._tried(CPU, dtype, 4, 2, 64, windowed, sinks)

    monkeypatch.setattr(flash_attention, "_forward", flash_forward)
    assert tried()
    for what, noticed in (
        ("out", True),
        ("window", windowed),
        ("sums", sinks),
        ("splits", True),
    ):
        monkeypatch.setattr(flash_attention, "_forward", off(what))
        assert tried() != noticed


def test_where_it_cannot_be_called_sequences_attend_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> bool:
        raise RuntimeError("no kernel image is available\nfor this device")

    monkeypatch.setattr(flash_attention, "_tried", fails)
    flash_attention.flash_refusal.cache_clear()
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            assert not kernels.flash_serves(torch.device("cuda"), torch.bfloat16, 4, 2, 64)
    flash_attention.flash_refusal.cache_clear()
    reason = "FlashAttention fails: no kernel image is available"
    assert [log["reason"] for log in logs] == [reason]


@needs_gpu
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("counts", [[1], [1, 1, 1], [4, 1, 7], [40, 2]])
def test_a_gpu_attends_by_the_same_rule(counts: list[int], window: int | None, sinks: bool) -> None:
    torch.manual_seed(0)
    device = torch.device("cuda", 0)
    for windowed in (False, window is not None):
        assert kernels.flash_serves(device, torch.bfloat16, 6, 2, 64, windowed, sinks)
    segments = segments_of(counts, [1, 30, 8][: len(counts)])
    query = torch.randn(sum(counts), 6, 64).bfloat16()
    keys, values = torch.randn(2, 120, 2, 64).bfloat16()
    beside = torch.randn(6) if sinks else None
    wanted = kernels.paged_attention(
        query, keys, values, AttentionMetadata(segments), 0.3, window=window, sinks=beside
    )
    got = kernels.paged_attention(
        query.to(device),
        keys.to(device),
        values.to(device),
        AttentionMetadata(segments),
        0.3,
        window=window,
        sinks=None if beside is None else beside.to(device),
    )
    torch.testing.assert_close(got.cpu(), wanted, atol=2e-2, rtol=2e-2)
