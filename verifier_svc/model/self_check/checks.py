"""A target proves itself as it is loaded: what it serves is what its own forward gives.

The model runs a few short texts, each alone, with transformers' own attention, mask and head, and
the last once more with states off by a rounding behind every part, which tells how far rounding
leads. What serves runs the same texts side by side, in pieces, with wrong drafts taken back. The
last pieces are rounds without a prompt, as graphs replay them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle, islice
from typing import Any

import torch

from speckernels import AttentionMetadata, QuerySegment
from verifier_svc.kv.block_pool import BLOCK_SIZE, blocks_for
from verifier_svc.kv.kv_cache import KVCache
from verifier_svc.model.decoder.attention import Unsupported
from verifier_svc.model.decoder.backends import CaptureSpec, DecoderBackend
from verifier_svc.model.lm_head import LMHead
from verifier_svc.model.self_check.attention_survey import AttentionSurvey
from verifier_svc.model.self_check.reference_forward import SPARE, Reference, Text, far

# Pieces of a text, by whether they are of its prompt, as long as any of it is left.
_CUTS = ((13, True), (1, False), (6, False), (2, True), (24, True), (4, False))
# So many rows of a text's end are served in batches without a prompt, which may be recorded ones.
_ROUNDS, _DECODED = ((1, False), (4, False)), 8
# Rows may be so many times as far off as rounding leads half of them, and of so many side by side
# a few farther: those that were about to take other experts.
_FACTOR, _GROUP, _FEW = 1.5, 16, 0.25
# Scalings of logits by their names in configurations; some families multiply, some divide.
_SCALES = ("logits_scaling", "logit_scale", "lm_head_multiplier", "output_multiplier_scale")

# Token, position and slot of each row; segments; the rows that are no wrong draft.
_Batch = tuple[list[tuple[int, int, int]], list[QuerySegment], list[int]]


@torch.inference_mode()
def scale_head(reference: Reference, head: LMHead, config: Any) -> None:
    """Let a head multiply its logits as the model does: by the configuration's scale that fits."""
    named = [getattr(config, name, None) for name in _SCALES]
    given = [float(value) for value in named if isinstance(value, int | float) and value]
    wanted = reference.logits.float()

    def off(scale: float) -> float:
        head.scale = scale
        return float(far(head.logits(reference.states[-1]), wanted).median())

    head.scale = min([1.0, *given, *(1 / value for value in given)], key=off) if given else 1.0


@torch.inference_mode()
def check_head(reference: Reference, head: LMHead) -> None:
    """Compare the head's logits of the model's own states.

    Raises:
        Unsupported: they differ from the model's own, or their argmax is not the best.
    """
    states, wanted = reference.states[-1], reference.logits.float()
    limit = max(2 * torch.finfo(states.dtype).eps, 1e-4)
    got = head.logits(states)
    if got.shape != wanted.shape or not bool((far(got, wanted) <= limit).all()):
        raise Unsupported("its logits are more than a linear map of its final states")
    best = got.gather(1, head.argmax(states)[:, None])[:, 0]
    if not bool((best >= got.amax(-1) - limit * got.abs().amax(-1)).all()):
        raise Unsupported("its best tokens are not those of the largest logits")


@torch.inference_mode()
def check_states(
    reference: Reference, body: DecoderBackend, survey: AttentionSurvey, layers: Sequence[int]
) -> None:
    """Compare the states of the texts as they are served.

    Raises:
        Unsupported: they differ by more than rounding.
    """
    got = _served(reference.texts, body, survey, tuple(layers), reference.states[0])
    eps = torch.finfo(reference.states[0].dtype).eps
    limit = max(_FACTOR * reference.noise, 4 * eps, 1e-4)
    final = [far(each[1], own) for each, own in zip(got, reference.states, strict=True)]
    entered = [
        far(each[0].view_as(own), own).amax(-1)
        for each, own in zip(got, reference.inputs, strict=True)
    ]
    shares = torch.cat(final + entered)
    if not bool(shares.isfinite().all()):
        raise Unsupported("its states as they are served are not finite")
    for rows in torch.split(shares, _GROUP):
        if float((rows <= limit).float().mean()) < 1 - _FEW:
            raise Unsupported(
                "its states differ from those of its own forward "
                f"(by {float(rows.amax()):.1e}, where rounding explains {limit:.1e})"
            )


def _served(
    texts: Sequence[Text],
    body: DecoderBackend,
    survey: AttentionSurvey,
    layers: tuple[int, ...],
    like: torch.Tensor,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """By text, captured states [rows, width] and final ones of texts run side by side in pieces."""
    bases = [0]
    for text in texts:
        bases.append(bases[-1] + blocks_for(len(text.tokens) + SPARE) * BLOCK_SIZE)
    cache = KVCache(
        blocks=bases[-1] // BLOCK_SIZE,
        layers=len(survey.scorings),
        kv_heads=survey.kv_heads,
        head_dim=survey.head_dim,
        feature_width=len(layers) * like.shape[-1],
        dtype=like.dtype,
        device=like.device,
    )
    # What was left in the cache by others must not matter.
    for pool in (*cache.keys, *cache.values):
        pool.fill_(3.0)
    final = like.new_empty(bases[-1], like.shape[-1])
    for rows, segments, kept in _steps(texts, bases):
        packed = torch.tensor(rows, device=like.device).T.contiguous()
        reach = AttentionMetadata(segments, block=BLOCK_SIZE)
        hidden = body.run(packed, reach, cache, CaptureSpec(layers, cache.features, packed[2]))
        places = torch.tensor(kept, device=like.device)
        final[packed[2][places]] = hidden[places]
    spans = [slice(base, base + len(text.tokens)) for base, text in zip(bases, texts, strict=False)]
    return [(cache.features[span], final[span]) for span in spans]


def _steps(texts: Sequence[Text], bases: Sequence[int]) -> Iterator[_Batch]:
    """Batches with prompts, and then without them."""
    done = [0] * len(texts)
    lengths = [len(text.tokens) for text in texts]
    prompts = [length - min(_DECODED, length // 2) for length in lengths]
    for cuts, stops in ((_CUTS, prompts), (_ROUNDS, lengths)):
        step = 0
        while done != stops:
            yield _batch(texts, bases, done, stops, islice(cycle(cuts), step, None))
            step += 1


def _batch(
    texts: Sequence[Text],
    bases: Sequence[int],
    done: list[int],
    stops: Sequence[int],
    cuts: Iterable[tuple[int, bool]],
) -> _Batch:
    """The next piece of each text that has not come to its stop; moves `done` on."""
    rows: list[tuple[int, int, int]] = []
    segments: list[QuerySegment] = []
    kept: list[int] = []
    for index, (text, (count, prompt)) in enumerate(zip(texts, cuts, strict=False)):
        first, stop = done[index], min(done[index] + count, stops[index])
        if first == stop:
            continue
        done[index] = stop
        kept += range(len(rows), len(rows) + stop - first)
        # Behind the last position there is no room for drafts.
        spare = 0 if prompt or text.start else SPARE
        run = (*text.tokens[first:stop], *text.tokens[:1] * spare)
        segments.append(QuerySegment(len(rows), len(run), bases[index], first + 1, prompt))
        rows += [
            (token, text.start + first + i, bases[index] + first + i) for i, token in enumerate(run)
        ]
    return rows, segments, kept
