"""Packed rows as FlashAttention takes them: by the rule that it documents, without a GPU."""

from __future__ import annotations

import pytest
import structlog
import torch
from hypothesis import given
from hypothesis import strategies as st

from specwire import kernels
from specwire.kernels import Reach, Segment, flash, span_table
from tests.support.flash import serve_flash, varlen_attn

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def segments_of(counts: list[int], lengths: list[int]) -> list[Segment]:
    """Segments whose keys lie in the reverse order of their rows, with a gap between them."""
    segments, row, slot = [], 0, 2 + sum(counts) + sum(lengths) + 3 * len(counts)
    for count, length in zip(counts, lengths, strict=True):
        slot -= length + count + 2
        segments.append(Segment(row, count, slot, length))
        row += count
    return segments


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=6),
    st.integers(0, 6),
)
def test_what_fills_a_batch_up_attends_to_the_spare_slot(
    shape: list[tuple[int, int]], filling: int
) -> None:
    segments = segments_of([count for count, _ in shape], [length for _, length in shape])
    rows = sum(count for count, _ in shape) + filling
    starts, slots, lengths = span_table(segments, rows, rows, 99)
    assert len(starts) == len(slots) == len(lengths) == rows + 1
    parts = list(zip(starts, starts[1:], slots, lengths, strict=False))
    mine = [(s.row, s.row + s.count, s.start, s.length + s.count - 1) for s in segments]
    assert parts[: len(mine)] == mine
    spare = [(row, row + 1, 99, 1) for row in range(rows - filling, rows)]
    assert parts[len(mine) : len(mine) + filling] == spare
    assert parts[len(mine) + filling :] == [(rows, rows, 99, 0)] * (rows - len(mine) - filling)


@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("counts", [[1], [1, 1, 1], [4, 1, 7], [40, 2]])
def test_rows_attend_as_without_it(
    heads: int, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    segments = segments_of(counts, [1, 30, 8][: len(counts)])
    query = torch.randn(sum(counts), heads, 16)
    keys, values = torch.randn(2, 120, 2, 16)
    wanted = kernels.attend(query, keys, values, Reach(segments), 0.3)
    serve_flash(monkeypatch)
    got = kernels.attend(query, keys, values, Reach(segments), 0.3)
    torch.testing.assert_close(got, wanted)


def test_a_cpu_and_full_precision_are_left_to_others() -> None:
    assert not kernels.flash_serves(CPU, torch.bfloat16, 4, 2, 64)
    assert not kernels.flash_serves(torch.device("cuda"), torch.float32, 4, 2, 64)


def test_where_it_fails_or_differs_it_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention import varlen

    def tried() -> bool:
        return flash._tried(CPU, torch.bfloat16, 4, 2, 64)

    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    assert tried()
    monkeypatch.setattr(varlen, "varlen_attn", lambda *a, **k: varlen_attn(*a, **k) * 1.1)
    assert not tried()


def test_where_it_cannot_be_called_sequences_attend_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> bool:
        raise RuntimeError("no kernel image is available\nfor this device")

    monkeypatch.setattr(flash, "_tried", fails)
    flash.flash_serves.cache_clear()
    with structlog.testing.capture_logs() as logs:
        assert not kernels.flash_serves(torch.device("cuda"), torch.bfloat16, 4, 2, 64)
    flash.flash_serves.cache_clear()
    assert logs[0]["reason"] == "no kernel image is available"


@needs_gpu
@pytest.mark.parametrize("counts", [[1], [1, 1, 1], [4, 1, 7], [40, 2]])
def test_a_gpu_attends_by_the_same_rule(counts: list[int]) -> None:
    torch.manual_seed(0)
    device = torch.device("cuda")
    assert kernels.flash_serves(device, torch.bfloat16, 6, 2, 64)
    segments = segments_of(counts, [1, 30, 8][: len(counts)])
    query = torch.randn(sum(counts), 6, 64).bfloat16()
    keys, values = torch.randn(2, 120, 2, 64).bfloat16()
    reach = Reach(segments)
    got = kernels.attend(query.to(device), keys.to(device), values.to(device), reach, 0.3)
    wanted = kernels.attend(query, keys, values, Reach(segments), 0.3)
    torch.testing.assert_close(got.cpu(), wanted, atol=2e-2, rtol=2e-2)
