"""Windows, soft caps and sinks: what rows see and how keys are scored, against the plain rule."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import speckernels as kernels
from speckernels import AttentionMetadata, QuerySegment, attention
from specserve.settings import Compile, Level
from tests.speckernels.test_flash_attention import segments_of
from tests.support.fake_flash_attention import serve_flash

HEADS, KV_HEADS, WIDTH, SCALE = 6, 2, 8, 0.4
SHAPES = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 40)), min_size=1, max_size=4)


def by_rule(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    segments: list[QuerySegment],
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Row by row and head by head, in fp64."""
    out = torch.empty_like(query, dtype=torch.float64)
    for part in segments:
        for row in range(part.count):
            last = part.start + part.length + row
            first = part.start if window is None else max(part.start, last - window)
            for head in range(HEADS):
                shared = head // (HEADS // KV_HEADS)
                key, value = (pool[first:last, shared].double() for pool in (keys, values))
                scores = key @ query[part.row + row, head].double() * SCALE
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                beside = 0.0 if sinks is None else math.exp(float(sinks[head]))
                shares = scores.exp() / (scores.exp().sum() + beside)
                out[part.row + row, head] = shares @ value
    return out


def rows_of(
    segments: list[QuerySegment], width: int = WIDTH
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(segments))
    count = segments[-1].row + segments[-1].count
    slots = max(s.start + s.length + s.count for s in segments) + 32
    shapes = (count, HEADS, width), (slots, KV_HEADS, width), (slots, KV_HEADS, width)
    query, keys, values = (torch.randn(*shape, generator=generator) for shape in shapes)
    return query, keys, values


@given(
    SHAPES,
    st.none() | st.integers(1, 50),
    st.none() | st.sampled_from([0.5, 3.0]),
    st.booleans(),
    st.sampled_from([1, 16]),
    st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_rows_attend_by_the_rule(
    shape: list[tuple[int, int]],
    window: int | None,
    softcap: float | None,
    sunk: bool,
    block: int,
    prompt: bool,
) -> None:
    segments = [
        QuerySegment(s.row, s.count, s.start, s.length, prompt)
        for s in segments_of([count for count, _ in shape], [length for _, length in shape])
    ]
    query, keys, values = rows_of(segments)
    sinks = torch.linspace(-2, 2, HEADS) if sunk else None
    got = kernels.paged_attention(
        query, keys, values, AttentionMetadata(segments, block=block), SCALE,
        window=window, softcap=softcap, sinks=sinks,
    )  # fmt: skip
    wanted = by_rule(query, keys, values, segments, window, softcap, sinks)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("level", kernels.levels_here())
@pytest.mark.parametrize(
    ("window", "softcap", "sunk"),
    [(None, 2.0, False), (None, None, True), (1, None, False), (70, 0.5, True), (130, None, True)],
)
def test_kernels_attend_by_the_rule(
    window: int | None, softcap: float | None, sunk: bool, level: Level, dtype: torch.dtype
) -> None:
    """Prompts, rows of drafts and single ones, some within one block of keys, some beyond many."""
    kernels.load_kernels("auto", level)
    counts, lengths = [40, 5, 1, 70, 1], [1, 150, 260, 300, 3]
    parts = segments_of(counts, lengths)
    segments = [replace(part, prompt=part.count > 30) for part in parts]
    query, keys, values = (each.to(dtype) for each in rows_of(segments, 32))
    sinks = torch.linspace(-2, 2, HEADS) if sunk else None
    got = kernels.paged_attention(
        query,
        keys,
        values,
        AttentionMetadata(segments),
        SCALE,
        window=window,
        softcap=softcap,
        sinks=sinks,
    )
    kernels.load_kernels("off")
    wanted = by_rule(query, keys, values, segments, window, softcap, sinks)
    near = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(got.double(), wanted, rtol=near, atol=near)


@pytest.mark.parametrize("compile", ["auto", "off"])
def test_a_window_that_hides_nothing_changes_no_bit(compile: Compile) -> None:
    kernels.load_kernels(compile)
    segments = [QuerySegment(0, 4, 0, 17), QuerySegment(4, 1, 64, 20)]
    query, keys, values = rows_of(segments)
    plain = kernels.paged_attention(query, keys, values, AttentionMetadata(segments), SCALE)
    for window in (20, 21, 10**6):
        same = kernels.paged_attention(
            query, keys, values, AttentionMetadata(segments), SCALE, window=window
        )
        assert torch.equal(same, plain)
    less = kernels.paged_attention(
        query, keys, values, AttentionMetadata(segments), SCALE, window=19
    )
    kernels.load_kernels("off")
    assert not torch.equal(less[3:], plain[3:])
    torch.testing.assert_close(less[:3], plain[:3])


def test_few_scores_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are held, the rows come out alike."""
    segments = [QuerySegment(0, 30, 0, 9)]
    query, keys, values = rows_of(segments)
    whole = kernels.paged_attention(
        query, keys, values, AttentionMetadata(segments), SCALE, softcap=2.0, window=7
    )
    monkeypatch.setattr(attention, "_SCORES", HEADS * 38 * 4)
    parts = kernels.paged_attention(
        query, keys, values, AttentionMetadata(segments), SCALE, softcap=2.0, window=7
    )
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("window", [1, 5, 17, 100])
@pytest.mark.parametrize("counts", [[1], [1, 1, 1], [4, 1, 7], [40, 2]])
def test_flash_attention_is_given_the_window(
    counts: list[int], window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = segments_of(counts, [1, 30, 8][: len(counts)])
    query, keys, values = rows_of(segments)
    wanted = kernels.paged_attention(
        query, keys, values, AttentionMetadata(segments), SCALE, window=window
    )
    serve_flash(monkeypatch)
    got = kernels.paged_attention(
        query, keys, values, AttentionMetadata(segments), SCALE, window=window
    )
    torch.testing.assert_close(got, wanted)
    # Soft caps are not for it.
    monkeypatch.setattr(attention, "flash_attention", lambda *_: pytest.fail("it was asked"))
    kernels.paged_attention(query, keys, values, AttentionMetadata(segments), SCALE, softcap=1.0)
