"""Which values of a checkpoint's config agree best with its target, where other values load too.

The same weights run with ``norm_output`` and ``norm_before_residual`` as declared and the other
way round, and with other bases and scalings of RoPE: EAGLE-3's default, the target's, none. Files
of several trainers declare what they did not compute. The state that is recycled first matters in
the second chain step, so that variants are compared over two, teacher-forced. They run over one
long text, since what a wrong base or scaling costs grows with distance: base 10,000 in place of
100,000 costs the shipped drafter .035 of a token over 1,300 tokens, 11 standard errors, and no
more than noise over eight texts of 150.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from drafter_svc.formats.checkpoint import LoadedDrafter
from drafter_svc.model.config import DrafterConfig
from drafter_svc.model.eagle import EagleDrafter
from drafter_svc.model.rope import SCALINGS
from drafter_svc.train.objective.ttt_attention import ChainAttention

DECLARED = "as declared"
_USUAL_THETA = 10000.0
_STEPS = 2
_ROWS = 256


@dataclass(frozen=True, slots=True)
class Variant:
    """Mean overlap in both steps; ``ahead`` is how much better the declared one agrees in one.

    ``error`` is the standard error of ``ahead``, of differences paired by position.
    """

    name: str
    steps: tuple[float, ...]
    ahead: float
    error: float

    def is_better(self, errors: float) -> bool:
        """Whether it agrees better than the declared one beyond so many standard errors."""
        return -self.ahead > errors * self.error

    def is_behind(self, errors: float) -> bool:
        """Whether the declared one agrees better, likewise."""
        return self.ahead > errors * self.error


@torch.no_grad()
def compare_variants(
    loaded: LoadedDrafter,
    target: Any,
    embedding: nn.Embedding,
    ids: Tensor,
    features: Tensor,
    logits: Tensor,
    start: int,
) -> tuple[Variant, ...]:
    """Agreement of all variants over chains from position ``start`` on, the declared one first.

    ``target`` is the target's config and ``embedding`` its embeddings. Of one text are int64 ids
    ``[T]``, features ``[T, captured * H]`` and the target's logits ``[T, V]``.
    """
    found = {
        name: _overlaps(
            _with(loaded.module, config),
            loaded.target_ids,
            embedding,
            ids,
            features,
            logits,
            start,
        )
        for name, config in variants_of(loaded.config, target).items()
    }
    rows = []
    for name, overlaps in found.items():
        difference = (found[DECLARED] - overlaps).mean(-1)
        error = float(difference.std()) / len(difference) ** 0.5
        steps = tuple(overlaps.mean(0).tolist())
        rows.append(Variant(name, steps, float(difference.mean()), error))
    return tuple(rows)


def _overlaps(
    module: EagleDrafter,
    target_ids: Tensor,
    embedding: nn.Embedding,
    ids: Tensor,
    features: Tensor,
    logits: Tensor,
    start: int,
) -> Tensor:
    """Sum of min(p, q) of the chain of each column from ``start`` on, ``[S, 2]``."""
    config, total = module.config, len(ids) - 1 - _STEPS
    current, columns = torch.arange(total), torch.arange(start, total)
    attend = ChainAttention([total], columns, config.sliding_window, config.num_hidden_layers)
    table, state = module.embeddings(embedding), module.fuse(features[:total])
    overlaps = []
    for step in range(_STEPS):
        embeds = table(ids[current + 1 + step]).to(state.dtype)
        hidden = module.layer(embeds, state, current + step, attend)
        if step == 0:
            hidden, current = hidden[columns], columns
        # Never whole: a vocabulary's width of every row is a lot of memory.
        pairs = zip(torch.split(hidden, _ROWS), torch.split(current + 1 + step, _ROWS), strict=True)
        parts = [
            torch.minimum(
                logits[taught].softmax(-1)[:, target_ids], module.logits(rows).softmax(-1)
            ).sum(-1)
            for rows, taught in pairs
        ]
        overlaps.append(torch.cat(parts))
        state = module.recycle(hidden)
    return torch.stack(overlaps, dim=-1)


def variants_of(config: DrafterConfig, target: Any) -> dict[str, DrafterConfig]:
    """Configs that take the same weights, by what they say; ``target`` is the target's config."""
    found = {DECLARED: config}
    found[f"norm_output {_said(not config.norm_output)}"] = replace(
        config, norm_output=not config.norm_output
    )
    if not config.mtp_head:
        before = not config.norm_before_residual
        found[f"norm_before_residual {_said(before)}"] = replace(
            config, norm_before_residual=before
        )
    parameters = dict(getattr(target, "rope_parameters", None) or {})
    theta = parameters.pop("rope_theta", None) or _USUAL_THETA
    thetas = dict.fromkeys((config.rope_theta, float(theta), _USUAL_THETA))
    for scaling in _scalings(config.rope_scaling, parameters):
        for base in thetas:
            if (base, scaling) == (config.rope_theta, config.rope_scaling):
                continue
            name = f"rope_theta {base:g}, {'no scaling' if scaling is None else scaling}"
            found[name] = replace(config, rope_theta=base, rope_scaling=scaling)
    return found


def _scalings(
    declared: Mapping[str, Any] | None, target: Mapping[str, Any]
) -> Sequence[Mapping[str, Any] | None]:
    """Without doubles: the declared one, none, and the target's if it is one of ours."""
    kind = target.get("rope_type")
    known = SCALINGS.get(kind, frozenset()) if isinstance(kind, str) else frozenset()
    theirs = {key: value for key, value in target.items() if key in known | {"rope_type"}}
    found: list[Mapping[str, Any] | None] = [declared]
    found += [] if declared is None else [None]
    return found + ([theirs] if known and theirs != declared else [])


def _with(module: EagleDrafter, config: DrafterConfig) -> EagleDrafter:
    """The same weights under another config, which gives them the same names and shapes."""
    with torch.device("meta"):
        other = EagleDrafter(config)
    if not config.own_head:
        other.lm_head = module.lm_head
    other.load_state_dict(module.state_dict(), assign=True)
    return other.eval().requires_grad_(False)


def _said(value: bool) -> str:
    return "true" if value else "false"
