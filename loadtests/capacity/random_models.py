"""Targets and drafters of a given shape, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from drafter_svc.formats.checkpoint import save_checkpoint
from drafter_svc.model.config import DrafterConfig
from drafter_svc.model.eagle import EagleDrafter
from specserve.settings import StartError
from verifier_svc.model.decoder.attention import NAME
from verifier_svc.model.target import Target

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
    "smollm2-135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
}
# Draft vocabularies of published EAGLE-3 checkpoints have so many tokens.
_DRAFT_VOCABULARY = 32000


def config_of(shape: str) -> Any:
    """The configuration of a target: of a name in SHAPES, or of a folder with a config.json.

    Raises:
        StartError: there is none.
    """
    if shape in SHAPES:
        return LlamaConfig(**SHAPES[shape])
    if not Path(shape, "config.json").is_file():
        names = ", ".join(SHAPES)
        raise StartError(f"--shape: {shape} is none of {names}, nor a folder with a config.json.")
    return AutoConfig.from_pretrained(shape)


def random_target(config: Any, name: str, dtype: torch.dtype, device: torch.device) -> Target:
    """A target whose weights are transformers' initial ones, made on its device."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=NAME)
    return Target(model.eval().requires_grad_(False), name)


def random_drafter(target: Target, *, width: int | None = None) -> EagleDrafter:
    """A drafter for `target` in fp32 on its device, of its own width or of another.

    It has embeddings, and drafts the first tokens of the vocabulary.
    """
    config = target.config
    hidden, heads = config.hidden_size, config.num_attention_heads
    made = DrafterConfig(
        hidden_size=width or hidden,
        target_hidden_size=hidden,
        intermediate_size=width or config.intermediate_size,
        num_attention_heads=1 if width else heads,
        num_key_value_heads=1 if width else target.kv_heads,
        head_dim=width or target.head_dim,
        max_position_embeddings=target.max_position,
        vocab_size=target.vocab_size,
        draft_vocab_size=min(width or _DRAFT_VOCABULARY, target.vocab_size),
        rms_norm_eps=config.rms_norm_eps,
        rope_theta=10000.0,
        fc_norm=True,
        norm_output=True,
        norm_before_residual=False,
        aux_layers=tuple(sorted(set(target.aux_layers))),
        target_fingerprint=target.fingerprint,
        own_embeddings=True,
    )
    torch.manual_seed(1)
    with torch.device(target.device):
        return EagleDrafter(made)


def save_random_drafter(folder: Path, target: Target, *, width: int | None = None) -> None:
    """Write a checkpoint of a `random_drafter`."""
    drafter = random_drafter(target, width=width)
    save_checkpoint(folder, drafter, torch.arange(drafter.config.draft_vocab_size))
