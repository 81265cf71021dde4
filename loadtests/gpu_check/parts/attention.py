"""FlashAttention of packed rows beside attention in fp32, and drafts as one segment or as several.

Keys lie in the reverse order of their rows, with gaps, and segments without rows follow.
"""

from __future__ import annotations

import torch

import speckernels as kernels
from loadtests.gpu_check import system
from loadtests.gpu_check.bench import Bench, apart, rounding
from loadtests.gpu_check.findings import Findings
from speckernels import AttentionMetadata, QuerySegment

_ROWS = (1, 4, 16)
_GAP, _EMPTY = 3, 5
_WINDOW = 48


@torch.inference_mode()
def run(bench: Bench, findings: Findings) -> None:
    """See the module."""
    shape = bench.shapes.target
    heads, kv_heads, dim = (
        shape[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    dtype = torch.bfloat16
    if bench.on_gpu:
        served = kernels.flash_serves(bench.device, dtype, heads, kv_heads, dim)
        findings.holds("FlashAttention serves", served)
    torch.manual_seed(0)
    longest = bench.shapes.lengths[-1]
    slots = sum(bench.shapes.lengths) + len(bench.shapes.lengths) * (max(_ROWS) + _GAP)
    keys, values = torch.randn(2, slots, kv_heads, dim, device=bench.device).to(dtype)
    sinks = torch.randn(heads, device=bench.device)
    for rows in _ROWS:
        segments = _segments(rows, bench.shapes.lengths, slots)
        query = torch.randn(rows * len(segments), heads, dim, device=bench.device).to(dtype)
        for window, sunk in ((None, None), (_WINDOW, None), (None, sinks), (_WINDOW, sinks)):
            if sunk is None:
                taken = system.spans(segments, _EMPTY, keys)
                got = system.attend(query, keys, values, taken, window)
            else:
                scale = dim**-0.5
                got = kernels.paged_attention(
                    query,
                    keys,
                    values,
                    AttentionMetadata(segments),
                    scale,
                    window=window,
                    sinks=sunk,
                )
            wanted = _plain(query, keys, values, segments, window, sunk)
            name = f"rows {rows}{'' if window is None else ', window'}"
            name += "" if sunk is None else ", sinks"
            findings.at_most(f"{name}: error", apart(got, wanted), rounding(dtype))
    query = torch.randn(4, heads, dim, device=bench.device).to(dtype)
    for length in bench.shapes.lengths[-3:]:
        one = [QuerySegment(0, 4, 0, length)]
        each = [QuerySegment(row, 1, 0, length + row) for row in range(4)]
        together, single = (
            bench.milliseconds(lambda s=taken: system.attend(query, keys, values, s))  # type: ignore[misc]
            for taken in (system.spans(segments, 0, keys) for segments in (one, each))
        )
        findings.note(f"4 rows, {length} keys, one segment", together, "ms")
        bar = 1.1 * together if length == longest else None
        findings.speed(f"4 rows, {length} keys, a segment each", single, bar)


def _segments(rows: int, lengths: tuple[int, ...], slots: int) -> list[QuerySegment]:
    """Segments of so many rows, the last of each having that many keys or one for each row."""
    segments: list[QuerySegment] = []
    slot = slots
    for number, length in enumerate(lengths):
        first = max(1, length - rows + 1)
        slot -= first + rows + _GAP - 1
        segments.append(QuerySegment(number * rows, rows, slot, first))
    return segments


def _plain(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    segments: list[QuerySegment],
    window: int | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Row by row, in fp32."""
    wanted = torch.empty_like(query, dtype=torch.float32)
    for segment in segments:
        for row in range(segment.count):
            stop = segment.start + segment.length + row
            first = segment.start if window is None else max(segment.start, stop - window)
            asked = query[segment.row + row].float().view(keys.shape[1], -1, query.shape[-1])
            key, value = (pool[first:stop].float().transpose(0, 1) for pool in (keys, values))
            scores = asked @ key.transpose(1, 2) * query.shape[-1] ** -0.5
            if sinks is not None:
                scores = torch.cat([scores, sinks.view(*asked.shape[:2], 1)], -1)
            shares = scores.softmax(-1)[..., : stop - first]
            wanted[segment.row + row] = (shares @ value).flatten(0, 1)
    return wanted
