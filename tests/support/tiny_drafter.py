"""A drafter small enough for tests; the width is that of no real target."""

from typing import Any

import torch

from drafter_svc.model.config import DrafterConfig
from drafter_svc.model.eagle import EagleDrafter


def tiny_config(**changes: Any) -> DrafterConfig:
    values: dict[str, Any] = {
        "hidden_size": 16,
        "target_hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "max_position_embeddings": 128,
        "vocab_size": 64,
        "draft_vocab_size": 40,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "fc_norm": True,
        "norm_output": True,
        "norm_before_residual": False,
        "aux_layers": (1, 2, 3),
        "target_fingerprint": "feed",
    }
    return DrafterConfig(**(values | changes))


def tiny_drafter(config: DrafterConfig, seed: int = 0) -> EagleDrafter:
    """fp32, with weights large enough that every part of the layer shows in the output."""
    torch.manual_seed(seed)
    drafter = EagleDrafter(config)
    with torch.no_grad():
        for parameter in drafter.parameters():
            scale = 0.3 if parameter.ndim == 2 else 1.0
            parameter.copy_(torch.randn(parameter.shape) * scale)
    return drafter
