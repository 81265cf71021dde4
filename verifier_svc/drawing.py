"""Drawing tokens from logits: exact, keyed by (seed, position, token, choice).

The draw is argmin over tokens of E / p, ties to the lowest id, where E is the keyed
exponential of `specwire.torch.exponentials`: a race that token i wins with probability p_i.
Temperature 0 is argmax. Whether a drafter proposed the token plays no part.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch

from specwire import kernels
from specwire.kernels import put
from specwire.noise import signed64
from specwire.torch import deferred
from verifier_svc.penalties import penalize
from verifier_svc.row import Row
from verifier_svc.truncation import CANDIDATES, truncate

#: In place of a token: a row that has a NaN, or none that is finite among its largest logits.
NOT_FINITE = -1
#: In place of a token: a row that the candidates for truncation did not decide.
UNDECIDED = -2


def draw(logits: torch.Tensor, rows: Items[Row], candidates: int = CANDIDATES) -> torch.Tensor:
    """Draw a token from each row of fp32 logits [rows, vocab], the target's, unprocessed.

    Returns int64 [rows] on their device: tokens, NOT_FINITE or UNDECIDED, as `settle` takes them.
    An accelerator is not waited for. A CPU takes row by row, each as far as it has to be looked at.
    """
    if len(rows) > 1 and not deferred(logits.device):
        return torch.cat(
            [draw(each, [row]) for each, row in zip(logits[:, None], rows, strict=True)]
        )
    scores = penalize(logits, rows)
    cut = [i for i, row in enumerate(rows) if row.sampling.truncates(scores.shape[-1])]
    if len(cut) == len(rows):
        return _draw_cut(scores, rows, candidates)
    winners = kernels.draw(scores, _noise(rows, scores.device))
    if cut:
        at = put(cut, scores.device)
        drawn = _draw_cut(scores[at], [rows[i] for i in cut], candidates)
        winners = winners.index_copy(0, at, drawn)
    return winners


def draw_runs(logits: torch.Tensor, rows: Items[Row], expected: Items[int]) -> list[int]:
    """Draw from rows that are all a `plain_race`, as one batch on a CPU.

    A row counts only if all before it, back to the one behind a negative number, drew what they
    `expected`: others cost no time, and what is returned for them means nothing.
    """
    noise = _noise(rows, logits.device)
    return kernels.draw(logits, noise, expected=torch.tensor(expected)).tolist()


def _draw_cut(scores: torch.Tensor, rows: Items[Row], candidates: int) -> torch.Tensor:
    """`draw` of rows that all leave tokens out, from processed scores."""
    kept = truncate(scores, [row.sampling for row in rows], candidates)
    places = kernels.draw(kept.logits, _noise(rows, scores.device), kept.ids)
    winners = kept.ids.gather(1, places.clamp(min=0)[:, None])[:, 0]
    winners = torch.where(places < 0, NOT_FINITE, winners)
    return winners if kept.undecided is None else torch.where(kept.undecided, UNDECIDED, winners)


def settle(winners: list[int], logits: torch.Tensor, rows: Items[Row]) -> list[int]:
    """What `draw` returned for the same rows, with those drawn again that are UNDECIDED.

    They are few, and sorted whole; an accelerator is waited for once where there are any.
    """
    again = [i for i, winner in enumerate(winners) if winner == UNDECIDED]
    if not again:
        return winners
    scores = logits[put(again, logits.device)]
    drawn = draw(scores, [rows[i] for i in again], candidates=logits.shape[-1]).tolist()
    settled = dict(zip(again, drawn, strict=True))
    return [settled.get(i, winner) for i, winner in enumerate(winners)]


def _noise(rows: Items[Row], device: torch.device) -> kernels.Noise | None:
    """The noise of rows, None where all take their argmax."""
    temperatures = [row.sampling.temperature for row in rows]
    if not any(temperatures):
        return None
    seeds = [signed64(row.sampling.seed) for row in rows]
    positions = [row.position for row in rows]
    choices = [row.choice for row in rows]
    keys = put([seeds, positions, choices], device)
    return kernels.Noise(keys[0], keys[1], keys[2], put(temperatures, device, torch.float32))
