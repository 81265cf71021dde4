"""Drawing a token from logits: exact, keyed by (seed, position, token, choice).

The draw is argmin over tokens of E / p, ties to the lowest id, where E is the keyed
exponential of `specwire.torch.exponentials`: a race that token i wins with probability p_i.
Temperature 0 is argmax. Whether a drafter proposed the token plays no part.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch

from specwire import kernels
from specwire.noise import signed64
from verifier_svc.generation import Logprobs, Sampling

# Logits further below the best are seldom needed to reach top_p; where they are, all are sorted.
_NEAR = 10.0


def draw(
    logits: torch.Tensor,
    sampling: Sampling,
    *,
    position: int,
    choice: int,
    prompt: Collection[int] = (),
    output_counts: Mapping[int, int] | None = None,
    banned: Collection[int] = (),
) -> int:
    """Draw the token at absolute index `position` from fp32 logits [vocab].

    Args:
        logits: the target's, unprocessed.
        sampling: how to draw.
        position: absolute index of the token that is drawn.
        choice: index among the n choices of a request.
        prompt: tokens of the prompt, for the repetition penalty.
        output_counts: how often each token is in the output so far, drafts in view included.
        banned: tokens that must not be drawn yet.
    """
    scores = process(logits, sampling, prompt, output_counts or {}, banned)
    if sampling.temperature == 0:
        return int(scores.argmax())
    key = signed64(sampling.seed), position, choice
    if not sampling.truncates:
        return race(None, scores, sampling.temperature, *key)
    ids, scaled = truncate(scores / sampling.temperature, sampling)
    return race(ids, scaled, 1.0, *key)


def process(
    logits: torch.Tensor,
    sampling: Sampling,
    prompt: Collection[int],
    output_counts: Mapping[int, int],
    banned: Collection[int],
) -> torch.Tensor:
    """Penalties, bias and masks, in this order; returns logits itself where none applies."""
    if sampling.plain_scores and not banned:
        return logits
    scores = logits.clone()
    device = logits.device
    if output_counts:
        ids = torch.tensor(list(output_counts), device=device)
        counts = torch.tensor(list(output_counts.values()), device=device, dtype=scores.dtype)
    if sampling.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*prompt, *output_counts}), device=device)
        picked = scores[seen]
        factor = sampling.repetition_penalty
        scores[seen] = torch.where(picked > 0, picked / factor, picked * factor)
    if output_counts and (sampling.presence_penalty or sampling.frequency_penalty):
        scores[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    if sampling.logit_bias:
        biased = torch.tensor(list(sampling.logit_bias), device=device)
        scores[biased] += torch.tensor(list(sampling.logit_bias.values()), device=device)
    if banned:
        scores[torch.tensor(sorted(banned), device=device)] = -math.inf
    return scores


def truncate(scaled: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """top_k, top_p and min_p, in this order, over logits / T [vocab].

    Returns the ids that stay and their logits, best first.
    """
    vocab = scaled.shape[-1]
    keep = min(sampling.top_k, vocab) if sampling.top_k > 0 else vocab
    likely, total = _likely(scaled, keep, sampling)
    # A stable sort gives ties to the lowest id.
    values, order = torch.sort(scaled[likely], descending=True, stable=True)
    values, ids = values[:keep], likely[order[:keep]]
    weights = torch.exp(values.double() - values[0])
    shares = weights / (weights.sum() if total is None else total)
    stays = torch.ones_like(values, dtype=torch.bool)
    if sampling.top_p < 1:
        stays &= shares.cumsum(-1) - shares < sampling.top_p
    if sampling.min_p > 0:
        stays &= shares >= sampling.min_p * shares[0]
    stays[0] = True
    return ids[stays], values[stays]


def _likely(
    scaled: torch.Tensor, keep: int, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The tokens that have to be sorted: all that may stay, and all that are likelier.

    Returns their ids in order, and the sum of all weights exp(scaled - max); None where what is
    left after top_k makes up the whole, or only ratios count.
    """
    best = scaled.max()
    if keep < len(scaled):
        return _at_least(scaled, scaled.topk(keep).values[-1]), None
    if sampling.top_p >= 1 and sampling.min_p > 0:
        return _at_least(scaled, best + math.log(sampling.min_p) - 1e-3), None
    weights = torch.exp(scaled.double() - best)
    near = _at_least(scaled, best - _NEAR)
    if weights[near].sum() > (sampling.top_p + 1e-9) * weights.sum():
        return near, weights.sum()
    return torch.arange(len(scaled), device=scaled.device), weights.sum()


def _at_least(scaled: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
    return (scaled >= floor).nonzero()[:, 0]


def race(
    ids: torch.Tensor | None,
    logits: torch.Tensor,
    temperature: float,
    seed: int,
    position: int,
    choice: int,
) -> int:
    """The winner of the exponential race among `ids` (None: all tokens) with fp32 logits.

    Raises:
        ValueError: a logit is not a number, or none is finite.
    """
    key = torch.tensor([[seed], [position], [choice]], device=logits.device)
    temperatures = torch.tensor([temperature], device=logits.device)
    noise = kernels.Noise(key[0], key[1], key[2], temperatures)
    winner = int(kernels.draw(logits[None], noise, ids))
    if winner < 0:
        raise ValueError("the target's logits are not finite")
    return winner if ids is None else int(ids[winner])


def logprobs_of(logits: torch.Tensor, token: int, top: int) -> Logprobs:
    """Log-probabilities of the unprocessed fp32 logits [vocab]: of `token` and of the best."""
    values = torch.log_softmax(logits, -1)
    best = torch.topk(values, top) if top else None
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True) if best else ()
    return Logprobs(drawn=float(values[token]), top=tuple(pairs))
