"""A drafter's weights before training, taken from the target where they fit."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from drafter_svc.formats.checkpoint import load_checkpoint
from drafter_svc.model.config import DrafterConfig
from drafter_svc.model.eagle import EagleDrafter
from drafter_svc.train.target.target import Target


def default_aux_layers(layers: int) -> tuple[int, ...]:
    """Low, middle and high state in the input-to-layer convention: (2, n // 2, n - 3).

    Targets of fewer than seven layers, where these would meet, give their quarters. Raises
    ``ValueError`` below four layers.
    """
    if layers < 4:
        raise ValueError(f"the target has {layers} layers, a drafter needs at least 4")
    if layers < 7:
        return (layers // 4, layers // 2, layers - layers // 4)
    return (2, layers // 2, layers - 3)


def drafter_config(
    target: Target, draft_vocab_size: int, arms: Mapping[str, Any] | None = None
) -> DrafterConfig:
    """EAGLE-3.1 with one layer of the target's own shapes and both normalizations.

    ``arms`` replace fields of it, but the width and the embeddings, which are the target's.
    Raises ``ValueError`` for layers that the target does not have.
    """
    config = target.config
    made = DrafterConfig(
        hidden_size=config.hidden_size,
        target_hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        vocab_size=config.vocab_size,
        draft_vocab_size=draft_vocab_size,
        rms_norm_eps=config.rms_norm_eps,
        rope_theta=config.rope_parameters["rope_theta"],
        fc_norm=True,
        norm_output=True,
        norm_before_residual=False,
        aux_layers=default_aux_layers(config.num_hidden_layers),
        target_fingerprint=target.fingerprint,
    )
    made = replace(made, **(arms or {}))
    require_layers(made.aux_layers, target)
    return made


@torch.no_grad()
def initial_drafter(
    config: DrafterConfig, target: Target, draft_ids: Tensor, seed: int
) -> EagleDrafter:
    """A drafter in fp32 that starts by passing the highest captured state to the target's head.

    ``fc``, or an MTP head's projection, is [0, .., 0, I], ``norm`` is the target's final norm,
    ``lm_head`` its rows of ``draft_ids``; the layers add nothing to the residual stream at first.
    The rest is normal with deviation 0.02, from ``seed``.
    """
    drafter = EagleDrafter(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in drafter.named_parameters():
        if parameter.ndim == 2:
            parameter.normal_(std=0.02, generator=generator)
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.zero_()
    projection: Any = drafter.midlayer.eh_proj if config.mtp_head else drafter.fc
    projection.weight.zero_()
    projection.weight[:, -config.hidden_size :] = torch.eye(config.hidden_size)
    drafter.norm.weight.copy_(target.final_norm)
    drafter.lm_head.weight.copy_(target.head[draft_ids.to(target.head.device)])
    return drafter


def trained_drafter(folder: str, target: Target) -> tuple[EagleDrafter, Tensor]:
    """A checkpoint's drafter in fp32 and its draft vocabulary, int64 ``[draft_vocab]``.

    A head that it borrows stays the target's, and embeddings stay as they are in training, the
    drafter's own too (SpecForge and speculators freeze them likewise): a corpus that trains a
    drafter has too few of the rarer tokens. Raises ``ValueError`` when the checkpoint cannot be
    read or does not fit.
    """
    loaded = load_checkpoint(folder, dtype=torch.float32)
    require_fit(loaded.config, target, folder)
    module = loaded.module.train().requires_grad_(True)
    if not loaded.config.own_head:
        module.borrow_head(target.head)
    if loaded.config.own_embeddings:
        module.embed_tokens.requires_grad_(False)
    return module, loaded.target_ids


def require_fit(config: DrafterConfig, target: Target, folder: str) -> None:
    """Raises ``ValueError`` for a drafter of another target."""
    if config.vocab_size != target.config.vocab_size:
        raise ValueError(
            f"{folder} has a vocabulary of {config.vocab_size}, the target one of "
            f"{target.config.vocab_size}"
        )
    if config.target_fingerprint != target.fingerprint:
        raise ValueError(f"{folder} was made for another target")
    if config.target_hidden_size != target.config.hidden_size:
        raise ValueError(
            f"{folder} has target_hidden_size {config.target_hidden_size}, the target has "
            f"{target.config.hidden_size}"
        )
    require_layers(config.aux_layers, target)


def require_layers(aux_layers: Sequence[int], target: Target) -> None:
    """Raises ``ValueError`` for states that the target does not have."""
    layers = target.config.num_hidden_layers
    if aux_layers[-1] > layers:
        raise ValueError(
            f"aux_layers has {aux_layers[-1]}, the target has states 0 to {layers} (its last one)"
        )
