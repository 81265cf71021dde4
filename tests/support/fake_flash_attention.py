"""Stands in for what needs a GPU: FlashAttention by its documented rules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

from speckernels import attention, eager_capture, flash_attention
from verifier_svc.model.decoder import cuda_graph_backend, select_backend

Forwarded = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def flash_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cum_seq_q: torch.Tensor,
    cum_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float,
    window_size_left: int,
    window_size_right: int,
    seqused_k: torch.Tensor,
) -> Forwarded:
    """Rows of a sequence see its keys but for as many as rows follow: causal from the end.

    Heads may have any size here, and numbers any dtype: tests have small ones, of full precision.
    The windows are how many keys before its own a row sees, and behind it; -1 is all of them.

    Raises:
        RuntimeError: a rule of the kernel, or of how it is used here, is broken.
    """
    _check_tensors(query, key, value)
    numbers = cum_seq_q, cum_seq_k, seqused_k
    _rule(all(t.dtype == torch.int32 and t.is_contiguous() for t in numbers), "int32, contiguous")
    _rule(len(cum_seq_q) == len(cum_seq_k) == len(seqused_k) + 1, "one length for each sequence")
    _rule(int(cum_seq_q[0]) == 0 and int(cum_seq_q[-1]) == len(query), "sequences have all rows")
    _rule(type(max_q) is type(max_k) is int, "the most are known on the host")
    _rule(dropout_p == 0.0 and not return_debug_mask, "inference")
    _rule(is_causal == (max_q > 1) and window_size_right == (0 if is_causal else -1), "causal")
    # One row of each: heads that share keys become rows, which needs as many rows as sequences.
    _rule(max_q > 1 or bool((cum_seq_q.diff() == 1).all()), "one row of each sequence")
    # Only then are keys shared among more of the device.
    _rule(max_q > 1 or window_size_left == -1, "a single row has no window")
    counts = cum_seq_q.diff()
    _rule(int(counts.max()) <= max_q and int(seqused_k.max()) <= max_k, "none is beyond the most")
    _rule(bool(((counts == 0) | (counts <= seqused_k)).all()), "each row has a key")
    lasts = cum_seq_k[:-1] + seqused_k
    _rule(int(cum_seq_k[:-1].min()) >= 0 and int(lasts.max()) <= len(key), "keys are in the pool")
    # By row: what its sequence's first key is, and behind which it sees none.
    sequences = torch.arange(len(counts)).repeat_interleave(counts)
    firsts, stops = cum_seq_k[sequences], lasts[sequences]
    if is_causal:
        stops = stops - (cum_seq_q[sequences + 1] - 1 - torch.arange(len(query)))
    if window_size_left >= 0:
        firsts = torch.maximum(firsts, stops - 1 - window_size_left)
    return _attended(query, key, value, scale, firsts, stops)


def _attended(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    firsts: torch.Tensor,
    stops: torch.Tensor,
) -> Forwarded:
    """Each row attends to its keys [first, stop)."""
    most, group = int((stops - firsts).max()), query.shape[1] // key.shape[1]
    places = firsts[:, None] + torch.arange(most)
    seen = places < stops[:, None]
    # What is not seen holds whatever was in memory.
    read = [pool[places.clamp(max=len(pool) - 1)].float() for pool in (key, value)]
    keys, values = (part.repeat_interleave(group, 2) for part in read)
    scores = torch.einsum("rhd,rkhd->rhk", query.float(), keys) * scale
    scores = scores.masked_fill(~seen[:, None], -torch.inf)
    out = torch.einsum("rhk,rkhd->rhd", scores.softmax(-1), values.where(seen[..., None, None], 0))
    unused = torch.empty(0)
    return out.to(query), scores.logsumexp(-1).T, unused, unused, unused


def _check_tensors(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    _rule(query.dtype == key.dtype == value.dtype, "one dtype")
    _rule(all(t.dim() == 3 and t.stride(-1) == 1 for t in (query, key, value)), "[rows, heads, d]")
    _rule(key.shape == value.shape and query.shape[2] == key.shape[2], "heads of one size")
    _rule(query.shape[1] % key.shape[1] == 0, "heads in groups")


def _rule(kept: bool, rule: str) -> None:
    if not kept:
        raise RuntimeError(f"FlashAttention's rule is broken: {rule}")


def serve_flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attend by FlashAttention's rules on the CPU; on `meta` by its own shapes."""
    real = flash_attention._forward

    def forward(query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if query.is_meta:
            return real(query, *args, **kwargs)
        # It looks at numbers, as the kernel need not.
        with _disable_current_modes():
            return flash_forward(query, *args, **kwargs)

    monkeypatch.setattr(flash_attention, "_forward", forward)
    monkeypatch.setattr(attention, "flash_serves", lambda *_: True)


def record_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders that are loaded from now on run as on a GPU."""
    serve_flash(monkeypatch)
    monkeypatch.setattr(cuda_graph_backend, "flash_refusal", lambda *_: None)
    monkeypatch.setattr(select_backend, "CudaGraphCapture", lambda device: eager_capture)
