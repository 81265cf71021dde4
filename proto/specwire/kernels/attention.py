"""Attention of packed rows over a cache of slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from specwire.kernels.flash import Spans, flash_attend, flash_serves, span_table
from specwire.kernels.library import kernels_for, threads
from specwire.kernels.segment import Segment
from specwire.kernels.transfer import put


class Reach:
    """What each row of a batch attends to, for all layers alike."""

    def __init__(self, segments: Sequence[Segment], *, block: int = 1) -> None:
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
        self._block = block
        self._masks: dict[Segment, torch.Tensor | None] = {}
        self._spans: Spans | None = None

    @classmethod
    def recorded(cls, rows: int, spans: Spans) -> Reach:
        """That of `rows` rows whose segments are read from the device as they are by then."""
        reach = cls(())
        reach.rows, reach._spans = rows, spans
        return reach

    def spans(self, device: torch.device) -> Spans:
        """The segments on a GPU."""
        if self._spans is None:
            table = span_table(self.segments, self.rows, len(self.segments), 0)
            keys = max(segment.length + segment.count - 1 for segment in self.segments)
            self._spans = Spans.of(put(table, device, torch.int32), self.longest, keys)
        return self._spans

    def mask(self, part: Segment, group: int, like: torch.Tensor) -> torch.Tensor | None:
        """What is added to the scores [group * count, slots] of a segment; None where nothing is.

        `group` is how many query heads share a key head.
        """
        if part not in self._masks:
            self._masks[part] = self._mask(part, group, like)
        return self._masks[part]

    def _mask(self, part: Segment, group: int, like: torch.Tensor) -> torch.Tensor | None:
        if part.count > 1 and part.length == 1:
            return None  # causal by itself
        last = part.length + part.count - 1
        width = -(-last // self._block) * self._block
        if part.count == 1 and width == last:
            return None
        rows = torch.arange(part.length, last + 1, device=like.device)
        hidden = torch.arange(width, device=like.device) >= rows[:, None]
        mask = like.new_zeros(part.count, width).masked_fill_(hidden, -torch.inf)
        return mask.repeat(group, 1)


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    reach: Reach,
    scale: float,
) -> torch.Tensor:
    """Attend packed rows to the slots that they reach.

    Args:
        query: [rows, heads, d], of any strides.
        keys: [slots, kv_heads, d]; `heads` is a multiple of `kv_heads`.
        values: as `keys`.
        reach: of the rows.
        scale: of the scores.

    Returns [rows, heads, d], contiguous.
    """
    _, heads, d = query.shape
    device = query.device
    if flash_serves(device, query.dtype, heads, keys.shape[1], d):
        return flash_attend(query, keys, values, reach.spans(device), scale)
    out = query.new_empty(reach.rows, heads, d)
    for part in _attend_by_kernel(query, keys, values, reach, scale, out):
        mask = reach.mask(part, heads // keys.shape[1], query)
        rows = slice(part.row, part.row + part.count)
        out[rows] = _attend(query[rows], keys, values, part, mask, scale)
    return out


def _attend_by_kernel(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    reach: Reach,
    scale: float,
    out: torch.Tensor,
) -> list[Segment]:
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
        0,
        0.0,
        None,
        out.data_ptr(),
        threads(),
    )
    left: tuple[list[Segment], ...] = (reach.parts, reach.prompts, [])
    return left[done]


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    part: Segment,
    mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """One segment's rows [n, heads, d] by torch's operator."""
    count, heads, d = query.shape
    kv_heads = keys.shape[1]
    width = part.length + part.count - 1 if mask is None else mask.shape[1]
    slots = slice(part.start, part.start + width)
    read = keys[slots].transpose(0, 1)[None], values[slots].transpose(0, 1)[None]
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
