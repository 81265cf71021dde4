"""Drawing tokens from logits: exact, keyed by (seed, position, token, choice).

The draw is argmin over tokens of E / p, ties to the lowest id, where E is the keyed
exponential of `exponential_noise.exponentials`: a race that token i wins with probability p_i.
Temperature 0 is argmax. Whether a drafter proposed the token plays no part.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch

import speckernels as kernels
from speckernels import to_device_async
from speckernels.device import is_async
from specwire.philox import signed64
from verifier_svc.sampling.penalties import penalize
from verifier_svc.sampling.sampling_row import SamplingRow
from verifier_svc.sampling.truncation import CANDIDATES, truncate

#: In place of a token: a row that has a NaN, or none that is finite among its largest logits.
NOT_FINITE = -1
#: In place of a token: a row that the candidates for truncation did not decide.
UNDECIDED = -2


def sample(
    logits: torch.Tensor, rows: Items[SamplingRow], candidates: int = CANDIDATES
) -> torch.Tensor:
    """Draw a token from each row of fp32 logits [rows, vocab], the target's, unprocessed.

    Returns int64 [rows] on their device: tokens, NOT_FINITE or UNDECIDED (`resample_undecided`).
    An accelerator is not waited for. A CPU takes row by row, each as far as it has to be looked at.
    """
    if len(rows) > 1 and not is_async(logits.device):
        return torch.cat(
            [sample(each, [row]) for each, row in zip(logits[:, None], rows, strict=True)]
        )
    scores = penalize(logits, rows)
    cut = [i for i, row in enumerate(rows) if row.sampling.truncates(scores.shape[-1])]
    if len(cut) == len(rows):
        return _draw_cut(scores, rows, candidates)
    winners = kernels.sample(scores, _noise(rows, scores.device))
    if cut:
        at = to_device_async(cut, scores.device)
        drawn = _draw_cut(scores[at], [rows[i] for i in cut], candidates)
        winners = winners.index_copy(0, at, drawn)
    return winners


def sample_runs(logits: torch.Tensor, rows: Items[SamplingRow], expected: Items[int]) -> list[int]:
    """Draw from rows that are all a `plain_race`, as one batch on a CPU.

    A row counts only if all before it, back to the one behind a negative number, drew what they
    `expected`: others cost no time, and what is returned for them means nothing.
    """
    noise = _noise(rows, logits.device)
    return kernels.sample(logits, noise, expected=torch.tensor(expected)).tolist()


def _draw_cut(scores: torch.Tensor, rows: Items[SamplingRow], candidates: int) -> torch.Tensor:
    """`sample` of rows that all leave tokens out, from processed scores."""
    kept = truncate(scores, [row.sampling for row in rows], candidates)
    places = kernels.sample(kept.logits, _noise(rows, scores.device), kept.ids)
    winners = kept.ids.gather(1, places.clamp(min=0)[:, None])[:, 0]
    winners = torch.where(places < 0, NOT_FINITE, winners)
    return winners if kept.undecided is None else torch.where(kept.undecided, UNDECIDED, winners)


def resample_undecided(
    winners: list[int], logits: torch.Tensor, rows: Items[SamplingRow]
) -> list[int]:
    """What `sample` returned for the same rows, with those drawn again that are UNDECIDED.

    They are few, and sorted whole; an accelerator is waited for once where there are any.
    """
    again = [i for i, winner in enumerate(winners) if winner == UNDECIDED]
    if not again:
        return winners
    scores = logits[to_device_async(again, logits.device)]
    drawn = sample(scores, [rows[i] for i in again], candidates=logits.shape[-1]).tolist()
    settled = dict(zip(again, drawn, strict=True))
    return [settled.get(i, winner) for i, winner in enumerate(winners)]


def _noise(rows: Items[SamplingRow], device: torch.device) -> kernels.SamplingKeys | None:
    """The noise of rows, None where all take their argmax."""
    temperatures = [row.sampling.temperature for row in rows]
    if not any(temperatures):
        return None
    seeds = [signed64(row.sampling.seed) for row in rows]
    positions = [row.position for row in rows]
    choices = [row.choice for row in rows]
    keys = to_device_async([seeds, positions, choices], device)
    return kernels.SamplingKeys(
        keys[0], keys[1], keys[2], to_device_async(temperatures, device, torch.float32)
    )
