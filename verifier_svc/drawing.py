"""Drawing a token from logits: exact, keyed by (seed, position, token, choice).

The draw is argmin over tokens of E / p, ties to the lowest id, where E is the keyed
exponential of `specwire.torch.exponentials`: a race that token i wins with probability p_i.
Temperature 0 is argmax. Whether a drafter proposed the token plays no part.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch

from specwire.noise import signed64
from specwire.torch import exponentials, vocabulary_exponentials
from verifier_svc.generation import Logprobs, Sampling


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
    ids, weights = truncate(scores / sampling.temperature, sampling)
    return race(ids, weights, signed64(sampling.seed), position, choice)


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


def truncate(scaled: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor | None, torch.Tensor]:
    """top_k, top_p and min_p, in this order, over logits / T [vocab].

    Returns the ids that stay (None: all) and their logits, best first where ids are given.
    """
    vocab = scaled.shape[-1]
    if sampling.top_k <= 0 and sampling.top_p >= 1 and sampling.min_p <= 0:
        return None, scaled
    keep = min(sampling.top_k, vocab) if sampling.top_k > 0 else vocab
    # A stable sort gives ties to the lowest id.
    values, ids = torch.sort(scaled, descending=True, stable=True)
    values, ids = values[:keep], ids[:keep]
    probabilities = torch.softmax(values.double(), -1)
    stays = torch.ones_like(values, dtype=torch.bool)
    if sampling.top_p < 1:
        stays &= probabilities.cumsum(-1) - probabilities < sampling.top_p
    if sampling.min_p > 0:
        stays &= probabilities >= sampling.min_p * probabilities[0]
    stays[0] = True
    return ids[stays], values[stays]


def race(
    ids: torch.Tensor | None, scaled: torch.Tensor, seed: int, position: int, choice: int
) -> int:
    """The winner of the exponential race among `ids` (None: all tokens) with logits `scaled`."""
    if ids is None:
        noise = vocabulary_exponentials(seed, position, choice, scaled)
    else:
        noise = exponentials(seed, position, ids, choice)
    logits = scaled.double()
    ratios = noise * torch.exp(logits.max() - logits)
    winners = (ratios == ratios.min()).nonzero().squeeze(-1)
    return int((winners if ids is None else ids[winners]).min())


def logprobs_of(logits: torch.Tensor, token: int, top: int) -> Logprobs:
    """Log-probabilities of the unprocessed fp32 logits [vocab]: of `token` and of the best."""
    values = torch.log_softmax(logits, -1)
    best = torch.topk(values, top) if top else None
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True) if best else ()
    return Logprobs(drawn=float(values[token]), top=tuple(pairs))
