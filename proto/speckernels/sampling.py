"""Draws of many rows at once: argmax, or the keyed exponential race."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from speckernels.library import kernels_for, num_threads
from specserve import logs
from specwire.philox import token_words

_log = logs.get(__name__)

_Winners = Callable[..., torch.Tensor]

# Variants of the compiled race that are kept. One row or many, with tokens shared or their own, are
# four; those of each mode and number of threads that a process draws in come on top.
_VARIANTS = 64
# Logits that operators race at a time on a device where their memory is short.
_RACED = 1 << 21


@dataclass(frozen=True, slots=True)
class SamplingKeys:
    """What each row is drawn with, contiguous, on the logits' device.

    `seeds` (the bits of the unsigned ones), `positions` of the drawn tokens and `choices` are
    int64 [rows], `temperatures` float32 [rows]: a row of temperature 0 takes its argmax.
    """

    seeds: torch.Tensor
    positions: torch.Tensor
    choices: torch.Tensor
    temperatures: torch.Tensor


def sample(
    logits: torch.Tensor,
    noise: SamplingKeys | None = None,
    ids: torch.Tensor | None = None,
    expected: torch.Tensor | None = None,
) -> torch.Tensor:
    """Draw from each row of logits [rows, width] of the tokens `ids` (None: 0, 1, 2, ...).

    These are int64 [width], or [rows, width] where rows have tokens of their own.

    The draw is argmin E / p, ties to the lowest id, with E as `exponential_noise.exponentials` and
    p the softmax of logits / temperature; without `noise` it is the first argmax.

    With `expected`, int64 [rows], a row counts only if all before it, back to the one behind a
    negative number, drew what they expected; what is returned for others means nothing.

    Returns int64 [rows], indices into the row. -1 stands for a row that has a NaN, or none that
    is finite among its largest.
    """
    kernels = kernels_for(logits)
    if ids is not None and len(ids) == 1 == ids.dim() - 1:
        ids = ids[0]
    if kernels is None or (ids is not None and (ids.dim() > 1 or not ids.is_contiguous())):
        return _draw(logits.float(), noise, ids)
    winners = torch.empty(len(logits), dtype=torch.int64)
    keys: tuple[int | None, ...] = (None,) * 4
    if noise is not None:
        keys = (
            noise.seeds.data_ptr(),
            noise.positions.data_ptr(),
            noise.choices.data_ptr(),
            noise.temperatures.data_ptr(),
        )
    kernels.hc_draw(
        logits.dtype == torch.bfloat16,
        logits.data_ptr(),
        *logits.shape,
        logits.stride(0),
        None if ids is None else ids.data_ptr(),
        *keys,
        None if expected is None else expected.data_ptr(),
        winners.data_ptr(),
        num_threads(),
    )
    return winners


def token_probs(logits: torch.Tensor, winners: torch.Tensor) -> torch.Tensor:
    """The softmax of logits [rows, width] at one index [rows] of each: fp32 [rows].

    0 for a row without a winner.
    """
    kernels = kernels_for(logits)
    if kernels is None or not winners.is_contiguous():
        picked = logits.float().softmax(-1).gather(1, winners.clamp(min=0)[:, None])[:, 0]
        return torch.where(winners < 0, 0.0, picked)
    out = torch.empty(len(logits), dtype=torch.float32)
    kernels.hc_shares(
        logits.dtype == torch.bfloat16,
        logits.data_ptr(),
        *logits.shape,
        logits.stride(0),
        winners.data_ptr(),
        out.data_ptr(),
    )
    return out


def _draw(
    logits: torch.Tensor, noise: SamplingKeys | None, ids: torch.Tensor | None
) -> torch.Tensor:
    top = logits.amax(-1)
    winners = logits.argmax(-1)
    if noise is not None:
        raced = _race(logits, noise, ids)
        winners = torch.where(noise.temperatures > 0, raced, winners)
    return torch.where(top.isfinite(), winners, -1)


def _race(logits: torch.Tensor, noise: SamplingKeys, ids: torch.Tensor | None) -> torch.Tensor:
    # Rows of temperature 0 are not drawn; any temperature will do.
    temperatures = torch.where(noise.temperatures > 0, noise.temperatures, 1.0)
    # Divided here, since a fused division may be rounded otherwise.
    scaled = logits / temperatures[:, None]
    keys = noise.seeds[:, None], noise.positions[:, None], noise.choices[:, None]
    if scaled.device.type != "cuda":
        return _winners(scaled, *keys, ids)
    if ids is None:
        ids = torch.arange(scaled.shape[-1], device=scaled.device)
    return _fused()(scaled, *keys, ids)


@cache
def _fused() -> _Winners:
    """`_winners` as few kernels, for devices on which every operator is one.

    The first draw of each shape is compared with what the operators draw.
    """
    # What is whole raises, instead of calling operators, where there are too many variants of it.
    compiled: _Winners | None = torch.compile(_winners, dynamic=True, fullgraph=True)
    limits = torch._dynamo.config
    tried: set[tuple[int, ...]] = set()

    def winners(*race: torch.Tensor) -> torch.Tensor:
        nonlocal compiled
        if compiled is None:
            return _in_chunks(*race)
        scaled, ids = race[0], race[-1]
        shape = (*scaled.shape, ids.dim())
        # From torch 2.13 on each thread has limits of its own.
        if limits.recompile_limit < _VARIANTS:
            limits.recompile_limit = _VARIANTS
        try:
            found = compiled(*race)
            if shape in tried or torch.equal(found, _in_chunks(*race)):
                tried.add(shape)
                return found
            reason = "it draws something else"
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        _log.warning("the race cannot be fused; torch's operators are used", reason=reason)
        compiled = None
        return _in_chunks(*race)

    return winners


def _in_chunks(
    scaled: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
    choices: torch.Tensor,
    ids: torch.Tensor,
) -> torch.Tensor:
    """`_winners` by operators, which need a hundred bytes for each token of a row they race."""
    step = max(1, _RACED // scaled.shape[-1])
    chunks = [slice(first, first + step) for first in range(0, len(scaled), step)]
    found = [
        _winners(
            scaled[at], seeds[at], positions[at], choices[at], ids if ids.dim() == 1 else ids[at]
        )
        for at in chunks
    ]
    return found[0] if len(found) == 1 else torch.cat(found)


def _winners(
    scaled: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
    choices: torch.Tensor,
    ids: torch.Tensor | None,
) -> torch.Tensor:
    """Winners int64 [rows] among `scaled`, logits / temperature, fp32 [rows, width].

    Seeds, positions and choices are int64 [rows, 1], `ids` as `sample` takes them.
    """
    width = scaled.shape[-1]
    if ids is None:
        # Four tokens share a block.
        blocks = torch.arange(-(-width // 4), device=scaled.device)
        words = token_words(seeds, positions, blocks, choices)
        word = torch.stack(words, -1).flatten(1)[:, :width]
    else:
        first, second, third, fourth = token_words(seeds, positions, ids >> 2, choices)
        low = torch.where((ids & 1) == 0, first, second)
        word = torch.where((ids & 2) == 0, low, torch.where((ids & 1) == 0, third, fourth))
    exponentials = -torch.log1p(-(word.double() + 0.5) * 2.0**-32)
    values = scaled.double()
    ratios = exponentials * torch.exp(values.amax(-1, keepdim=True) - values)
    if ids is None:
        return ratios.argmin(-1)
    best = ratios == ratios.amin(-1, keepdim=True)
    return torch.where(best, ids, torch.iinfo(torch.int64).max).argmin(-1)
