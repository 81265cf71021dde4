"""Draws of many rows at once: argmax, or the keyed exponential race."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from specwire.kernels.library import kernels_for, threads
from specwire.noise import token_words


@dataclass(frozen=True, slots=True)
class Noise:
    """What each row is drawn with, contiguous, on the logits' device.

    `seeds` (the bits of the unsigned ones), `positions` of the drawn tokens and `choices` are
    int64 [rows], `temperatures` float32 [rows]: a row of temperature 0 takes its argmax.
    """

    seeds: torch.Tensor
    positions: torch.Tensor
    choices: torch.Tensor
    temperatures: torch.Tensor


def draw(
    logits: torch.Tensor, noise: Noise | None = None, ids: torch.Tensor | None = None
) -> torch.Tensor:
    """Draw from each row of logits [rows, width] of the tokens `ids` [width] (None: 0, 1, 2, ...).

    The draw is argmin E / p, ties to the lowest id, with E as `specwire.torch.exponentials` and
    p the softmax of logits / temperature; without `noise` it is the first argmax.

    Returns int64 [rows], indices into the row. -1 stands for a row that has a NaN, or none that
    is finite among its largest.
    """
    kernels = kernels_for(logits)
    if kernels is None or (ids is not None and not ids.is_contiguous()):
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
        winners.data_ptr(),
        threads(),
    )
    return winners


def shares(logits: torch.Tensor, winners: torch.Tensor) -> torch.Tensor:
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


def _draw(logits: torch.Tensor, noise: Noise | None, ids: torch.Tensor | None) -> torch.Tensor:
    top = logits.amax(-1)
    winners = logits.argmax(-1)
    if noise is not None:
        raced = _race(logits, noise, ids)
        winners = torch.where(noise.temperatures > 0, raced, winners)
    return torch.where(top.isfinite(), winners, -1)


def _race(logits: torch.Tensor, noise: Noise, ids: torch.Tensor | None) -> torch.Tensor:
    width = logits.shape[-1]
    seeds, positions, choices = noise.seeds, noise.positions, noise.choices
    if ids is None:
        # Four tokens share a block.
        blocks = torch.arange(-(-width // 4), device=logits.device)
        words = token_words(seeds[:, None], positions[:, None], blocks, choices[:, None])
        word = torch.stack(words, -1).flatten(1)[:, :width]
    else:
        words = token_words(seeds[:, None], positions[:, None], ids >> 2, choices[:, None])
        word = torch.stack(words).gather(0, (ids & 3).expand(1, len(logits), -1))[0]
    exponentials = -torch.log1p(-(word.double() + 0.5) * 2.0**-32)
    # Rows of temperature 0 are not drawn; any temperature will do.
    temperatures = torch.where(noise.temperatures > 0, noise.temperatures, 1.0)
    scaled = (logits / temperatures[:, None]).double()
    ratios = exponentials * torch.exp(scaled.amax(-1, keepdim=True) - scaled)
    if ids is None:
        return ratios.argmin(-1)
    best = ratios == ratios.amin(-1, keepdim=True)
    return torch.where(best, ids, torch.iinfo(torch.int64).max).argmin(-1)
