"""Which reading of a checkpoint agrees best with its target, and which values of its config.

The drafter predicts text of the target, teacher-forced, under nine readings: features from the
layers that it names, one before or one behind, and tokens paired as declared, one earlier or one
later. A checkpoint that was read right agrees with the target best at (0, 0).

Agreement is the overlap of both distributions, sum min(p, q), which is the share of first draft
tokens that rejection sampling would accept. Shares of equal likeliest tokens are reported, but
neighbouring layers are too alike for them: with a drafter of .417, features one layer off gave
.414, 0.2 standard errors behind, while their overlap was 10 behind.

What a first draft token does not show is compared by `variants`, over the same texts as one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from drafter_svc.formats.checkpoint import LoadedDrafter
from drafter_svc.model.eagle import Attend
from drafter_svc.train.evaluation.config_variants import DECLARED, Variant, compare_variants
from drafter_svc.train.target.hidden_state_hooks import States
from drafter_svc.train.target.target import Target

#: How many paired standard errors (0, 0) must be ahead of each other reading.
STANDARD_ERRORS = 3.0
_AROUND = (-1, 0, 1)
_FEWEST = 64
_LONGEST = 2048


@dataclass(frozen=True, slots=True)
class Row:
    """One reading; ``ahead`` is how much better (0, 0) agrees, ``error`` its standard error."""

    offset: int
    shift: int
    top1: float
    agreement: float
    ahead: float
    error: float

    @property
    def is_declared(self) -> bool:
        """Whether this is the checkpoint's own reading."""
        return self.offset == 0 and self.shift == 0

    @property
    def is_behind(self) -> bool:
        """Whether (0, 0) is better beyond noise."""
        return self.ahead > max(0.0, STANDARD_ERRORS * self.error)


@dataclass(frozen=True, slots=True)
class LayerProbe:
    """Agreement of all readings over the same positions, and that of all variants."""

    positions: int
    rows: tuple[Row, ...]
    variants: tuple[Variant, ...]


def run_layer_probe(
    loaded: LoadedDrafter, target: Target, answers: Sequence[tuple[Tensor, int]]
) -> LayerProbe:
    """Try all readings on texts: int64 ids ``[T]`` and the number of prompt tokens in each."""
    config = loaded.config
    layers = target.model.config.num_hidden_layers
    offsets = [
        o for o in _AROUND if config.aux_layers[0] + o >= 0 and config.aux_layers[-1] + o <= layers
    ]
    hits: dict[tuple[int, int], list[Tensor]] = {}
    for ids, prompt in answers:
        states, logits = _states(target, ids, config.aux_layers, offsets)
        for offset in offsets:
            features = torch.cat([states[layer + offset] for layer in config.aux_layers], dim=-1)
            for shift in _AROUND:
                hit = _agreement(loaded, target.embedding, ids, features, logits, shift)
                hits.setdefault((offset, shift), []).append(hit[max(0, prompt - 1) :])
    declared = torch.cat(hits[0, 0])
    if len(declared) < _FEWEST:
        raise ValueError(
            f"the target's answers have {len(declared)} tokens to compare, the probe needs "
            f"{_FEWEST}: give more --prompts or --tokens"
        )
    rows = tuple(_row(reading, torch.cat(parts), declared) for reading, parts in hits.items())
    return LayerProbe(len(declared), rows, _variants(loaded, target, answers))


def _variants(
    loaded: LoadedDrafter, target: Target, answers: Sequence[tuple[Tensor, int]]
) -> tuple[Variant, ...]:
    """All texts, one behind the other, as far as both models go."""
    config = loaded.config
    longest = min(_LONGEST, config.max_position_embeddings, target.config.max_position_embeddings)
    ids = torch.cat([ids for ids, _ in answers])[:longest]
    states, logits = _states(target, ids, config.aux_layers, (0,))
    features = torch.cat([states[layer] for layer in config.aux_layers], dim=-1)
    start = min(max(0, answers[0][1] - 1), len(ids) // 2)
    return compare_variants(loaded, target.config, target.embedding, ids, features, logits, start)


def _row(reading: tuple[int, int], hits: Tensor, declared: Tensor) -> Row:
    """Differences are paired by position, so that easy and hard text cancels out."""
    difference = (declared - hits)[:, 1]
    error = float(difference.std()) / len(difference) ** 0.5
    top1, agreement = hits.mean(0).tolist()
    return Row(*reading, top1, agreement, float(difference.mean()), error)


def verdict(probe: LayerProbe) -> str | None:
    """Why what is declared is not right, or its reading cannot be told from others."""
    best = max(probe.rows, key=lambda row: row.agreement)
    if not best.is_declared and -best.ahead > STANDARD_ERRORS * best.error:
        advice = "" if best.offset == 0 else f": aux layers are off by {best.offset:+d}"
        advice += "" if best.shift == 0 else f": tokens are paired {best.shift:+d} off"
        return f"aux offset {best.offset} and token shift {best.shift} agree best{advice}"
    better = [variant for variant in probe.variants if variant.is_better(STANDARD_ERRORS)]
    if better:
        variant = min(better, key=lambda variant: variant.ahead)
        return (
            f"{variant.name} agrees better than what is declared, by {-variant.ahead:.4f} +- "
            f"{variant.error:.4f} of a draft token in the mean of two chain steps: set it in "
            "config.json"
        )
    near = [row for row in probe.rows if not row.is_declared and not row.is_behind]
    if near:
        readings = ", ".join(f"({row.offset}, {row.shift})" for row in near)
        return (
            f"aux offset 0 and token shift 0 are not ahead of {readings} by more than "
            f"{STANDARD_ERRORS:g} standard errors, so that a wrong reading would not show: train "
            "the drafter further, or probe with more prompts or --tokens"
        )
    return None


def undecided(probe: LayerProbe) -> list[str]:
    """Names of variants that agree neither better nor worse than what is declared."""
    return [
        variant.name
        for variant in probe.variants
        if variant.name != DECLARED
        and not variant.is_better(STANDARD_ERRORS)
        and not variant.is_behind(STANDARD_ERRORS)
    ]


@torch.no_grad()
def _agreement(
    loaded: LoadedDrafter,
    embedding: nn.Embedding,
    ids: Tensor,
    features: Tensor,
    logits: Tensor,
    shift: int,
) -> Tensor:
    """Top-1 hit and overlap of each position i in [0, T - 3), ``[T - 3, 2]``.

    Entry i pairs the feature of position i with token i + 1 + ``shift`` and stands for the token
    behind that one.
    """
    module, config = loaded.module, loaded.config
    positions = torch.arange(len(ids) - 3)
    tokens = ids[(positions + 1 + shift)]
    embeds = module.embeddings(embedding)(tokens).to(module.norm.weight.dtype)
    attend = _causal(len(positions), config.sliding_window)
    hidden = module.layer(embeds, module.fuse(features[: len(positions)]), positions, attend)
    drafted = module.logits(hidden)
    wanted = logits[positions + 1 + shift]
    hit = loaded.target_ids[drafted.argmax(-1)] == wanted.argmax(-1)
    overlap = torch.minimum(wanted.softmax(-1)[:, loaded.target_ids], drafted.softmax(-1)).sum(-1)
    return torch.stack([hit.float(), overlap], dim=-1)


def _causal(length: int, window: int | None) -> Attend:
    rows = torch.arange(length)
    distance = rows[:, None] - rows
    mask = (distance >= 0) & (distance < (length if window is None else window))

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        out = functional.scaled_dot_product_attention(
            queries.transpose(0, 1)[None],
            keys.transpose(0, 1)[None],
            values.transpose(0, 1)[None],
            attn_mask=mask,
            enable_gqa=True,
        )
        return out[0].transpose(0, 1).flatten(-2)

    return attend


@torch.no_grad()
def _states(
    target: Target, ids: Tensor, aux_layers: Sequence[int], offsets: Sequence[int]
) -> tuple[dict[int, Tensor], Tensor]:
    """Inputs to all layers in question, fp32 ``[T, H]``, and the target's logits ``[T, V]``."""
    captured: States = dict.fromkeys(layer + offset for layer in aux_layers for offset in offsets)
    logits = target.model(ids[None], use_cache=False, captured=captured).logits[0]
    states = {layer: state[0].float() for layer, state in captured.items() if state is not None}
    return states, logits.float()
