"""Attention of packed rows over a cache of slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from speckernels.flash_attention import VarlenTables, flash_attention, flash_serves, varlen_table
from speckernels.library import kernels_for, num_threads
from speckernels.query_segment import QuerySegment
from speckernels.transfer import to_device_async

# Scores that are held at a time where torch's operator does not make them.
_SCORES = 1 << 24


class AttentionMetadata:
    """What each row of a batch attends to, for all layers alike."""

    def __init__(self, segments: Sequence[QuerySegment], *, block: int = 1) -> None:
        """Take segments in order of their rows, which leave none out.

        torch's operators read keys in whole blocks of `block`, those beyond the rows' reach
        masked: their sums then take the same steps whether a row runs alone or with others
        behind it. Such slots must hold finite numbers.
        """
        self.rows = segments[-1].row + segments[-1].count if segments else 0
        self.segments = segments
        #: Rows of a segment at most.
        self.longest = max((segment.count for segment in segments), default=0)
        self.prompts = [s for s in segments if s.prompt]
        # As the kernels take them.
        self.parts = self.prompts + [s for s in segments if not s.prompt]
        self.table = torch.tensor([(s.row, s.count, s.start, s.length) for s in self.parts])
        #: Keys at most that a row attends to; None where that is only known on the device.
        self.furthest: int | None = max((s.length + s.count - 1 for s in segments), default=0)
        self._block = block
        self._masks: dict[tuple[QuerySegment, int, int | None], torch.Tensor | None] = {}
        # By window.
        self._spans: dict[int | None, VarlenTables] = {}

    @classmethod
    def recorded(cls, rows: int, spans: VarlenTables) -> AttentionMetadata:
        """That of `rows` rows whose segments are read from the device as they are by then."""
        reach = cls(())
        reach.rows, reach.furthest, reach._spans = rows, None, {None: spans}
        return reach

    def hides(self, window: int | None) -> bool:
        """Whether a window of so many keys, a row's own among them, hides any from a row."""
        return window is not None and (self.furthest is None or window < self.furthest)

    def spans(self, device: torch.device, window: int | None = None) -> VarlenTables:
        """The segments on a GPU, whose rows see the last `window` of their keys at most."""
        if None not in self._spans:
            table = to_device_async(varlen_table(self.segments), device, torch.int32)
            self._spans[None] = VarlenTables.of(table, self.longest, self.furthest or 0)
        if window is not None and window not in self._spans:
            self._spans[window] = self._spans[None].within(window)
        return self._spans[window]

    def columns(self, part: QuerySegment, window: int | None) -> range:
        """The keys of a segment that are read, those that all its rows must not see left out."""
        last = part.length + part.count - 1
        first = 0 if window is None else max(0, part.length - window)
        if self._mask_free(part, window):
            return range(first, last)
        return range(first // self._block * self._block, -(-last // self._block) * self._block)

    def mask(
        self, part: QuerySegment, group: int, like: torch.Tensor, window: int | None = None
    ) -> torch.Tensor | None:
        """What is added to the scores [group * count, columns] of a segment; None for nothing.

        `group` is how many query heads share a key head.
        """
        asked = part, group, window
        if asked not in self._masks:
            self._masks[asked] = self._mask(part, group, like, window)
        return self._masks[asked]

    def _mask_free(self, part: QuerySegment, window: int | None) -> bool:
        last = part.length + part.count - 1
        if window is not None and window < last:
            return False
        if part.count > 1:
            return part.length == 1  # causal by itself
        return last % self._block == 0

    def _mask(
        self, part: QuerySegment, group: int, like: torch.Tensor, window: int | None
    ) -> torch.Tensor | None:
        if self._mask_free(part, window):
            return None
        rows = torch.arange(part.length, part.length + part.count, device=like.device)[:, None]
        read = self.columns(part, window)
        keys = torch.arange(read.start, read.stop, device=like.device)
        hidden = keys >= rows
        if window is not None:
            hidden |= keys < rows - window
        mask = like.new_zeros(part.count, len(read)).masked_fill_(hidden, -torch.inf)
        return mask.repeat(group, 1)


def paged_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    reach: AttentionMetadata,
    scale: float,
    *,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend packed rows to the slots that they reach.

    Args:
        query: [rows, heads, d], of any strides.
        keys: [slots, kv_heads, d]; `heads` is a multiple of `kv_heads`.
        values: as `keys`.
        reach: of the rows.
        scale: of the scores.
        window: a row sees so many of its keys at most, the last ones, its own among them.
        softcap: bounds the scores softly, softcap * tanh(score / softcap).
        sinks: [heads], a score of each head beside those of the keys, of no value.

    Returns [rows, heads, d], contiguous.
    """
    _, heads, d = query.shape
    device = query.device
    if not reach.hides(window):
        window = None
    windowed, sunk = window is not None, sinks is not None
    # It knows no soft cap.
    if softcap is None and flash_serves(
        device, query.dtype, heads, keys.shape[1], d, windowed, sunk
    ):
        return flash_attention(query, keys, values, reach.spans(device, window), scale, sinks)
    assert reach.segments or not reach.rows, "without FlashAttention, segments must be known"
    out = query.new_empty(reach.rows, heads, d)
    sinks = None if sinks is None else sinks.float().contiguous()
    for part in _attend_by_kernel(query, keys, values, reach, out, scale, window, softcap, sinks):
        rows, read = slice(part.row, part.row + part.count), reach.columns(part, window)
        slots = slice(part.start + read.start, part.start + read.stop)
        asked, pair = query[rows], (keys[slots], values[slots])
        if sunk or softcap is not None:
            out[rows] = _attend_scored(asked, *pair, part, read, scale, window, softcap, sinks)
        else:
            mask = reach.mask(part, heads // keys.shape[1], query, window)
            out[rows] = _attend(asked, *pair, mask, scale)
    return out


def _attend_by_kernel(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    reach: AttentionMetadata,
    out: torch.Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> list[QuerySegment]:
    """Write to `out` what the kernel serves; returns what it leaves to torch."""
    kernels: Any = kernels_for(query, keys, values)
    if kernels is None or not (keys.is_contiguous() and values.is_contiguous()):
        return reach.parts
    _, heads, d = query.shape
    if query.stride(1) != d:
        query = query.contiguous()
    done: int = kernels.hc_attend(
        query.dtype == torch.bfloat16,
        d,
        query.data_ptr(),
        query.stride(0),
        keys.data_ptr(),
        values.data_ptr(),
        keys.stride(0),
        reach.table.data_ptr(),
        len(reach.parts),
        len(reach.prompts),
        heads,
        keys.shape[1],
        scale,
        window or 0,
        softcap or 0.0,
        None if sinks is None else sinks.data_ptr(),
        out.data_ptr(),
        num_threads(),
    )
    left: tuple[list[QuerySegment], ...] = (reach.parts, reach.prompts, [])
    return left[done]


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """One segment's rows [n, heads, d] by torch's operator, keys and values [read, kv_heads, d]."""
    count, heads, d = query.shape
    kv_heads = keys.shape[1]
    read = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
    by_head = query.transpose(0, 1)[None]
    if mask is None and count > 1:
        out = F.scaled_dot_product_attention(
            by_head, *read, is_causal=True, scale=scale, enable_gqa=heads > kv_heads
        )
    else:
        # The heads of a group read the same keys: fold them into query rows.
        folded = by_head.reshape(1, kv_heads, -1, d)
        out = F.scaled_dot_product_attention(folded, *read, attn_mask=mask, scale=scale)
        out = out.view(1, heads, count, d)
    return out[0].transpose(0, 1)


def _attend_scored(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    part: QuerySegment,
    read: range,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """One segment's rows [n, heads, d] with scores that torch's operator does not make.

    Scores are fp32, as many at a time as memory is lent for.
    """
    count, heads, d = query.shape
    kv_heads, width = keys.shape[1], len(read)
    key, value = (state.float().transpose(0, 1) for state in (keys, values))
    places = torch.arange(read.start, read.stop, device=query.device)
    out = torch.empty_like(query)
    step = max(1, _SCORES // (heads * width))
    for first in range(0, count, step):
        rows = slice(first, min(first + step, count))
        asked = query[rows].float().view(-1, kv_heads, heads // kv_heads, d).permute(1, 2, 0, 3)
        scores = asked.flatten(1, 2) @ key.transpose(1, 2) * scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        seen = torch.arange(rows.start, rows.stop, device=query.device)[:, None] + part.length
        hidden = places >= seen
        if window is not None:
            hidden |= places < seen - window
        by_row = scores.view(kv_heads, heads // kv_heads, len(seen), width)
        by_row.masked_fill_(hidden, -torch.inf)
        if sinks is not None:
            beside = sinks.view(kv_heads, -1, 1, 1).expand(*by_row.shape[:3], 1)
            by_row = torch.cat([by_row, beside], -1)
        shares = by_row.softmax(-1)[..., :width]
        made = shares.flatten(1, 2) @ value
        out[rows] = made.view(*by_row.shape[:3], d).permute(2, 0, 1, 3).flatten(1, 2).to(out)
    return out
