"""Rotary position embedding, with the scalings whose frequencies do not depend on the length."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

#: Kinds of ``rope_scaling`` and the keys that each takes beside ``rope_type``.
SCALINGS: dict[str, frozenset[str]] = {
    "linear": frozenset({"factor"}),
    "llama3": frozenset(
        {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    ),
    "yarn": frozenset(
        {
            "factor", "original_max_position_embeddings", "attention_factor", "beta_fast",
            "beta_slow", "mscale", "mscale_all_dim", "truncate",
        }
    ),
}  # fmt: skip


class Rope:
    """Cosines and sines of positions."""

    def __init__(
        self,
        head_dim: int,
        theta: float,
        scaling: Mapping[str, Any] | None = None,
        max_position_embeddings: int | None = None,
    ) -> None:
        """Take what a checkpoint says; only some scalings read ``max_position_embeddings``."""
        if scaling is None:
            exponents = torch.arange(0, head_dim, 2, device="cpu") / head_dim
            self._frequencies, self._scale = theta**-exponents, 1.0
        else:
            with torch.device("cpu"):  # modules may be built on another, or on none
                self._frequencies, self._scale = _scaled(
                    head_dim, theta, scaling, max_position_embeddings
                )

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, fp32 ``[..., T, 1, head_dim]``, of int64 ``[..., T]``."""
        angles = positions[..., None] * self._frequencies.to(positions.device)
        angles = torch.cat([angles, angles], dim=-1).unsqueeze(-2)
        cosines, sines = angles.cos(), angles.sin()
        if self._scale == 1.0:
            return cosines, sines
        return cosines * self._scale, sines * self._scale


def rotate(heads: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Apply RoPE (half-split pairs, as Llama in transformers) to ``[..., T, heads, d]``."""
    cosines, sines = (table.to(heads.dtype) for table in rotation)
    first, second = heads.chunk(2, dim=-1)
    return heads * cosines + torch.cat([-second, first], dim=-1) * sines


def _scaled(
    head_dim: int, theta: float, scaling: Mapping[str, Any], max_positions: int | None
) -> tuple[Tensor, float]:
    # Only checkpoints with a scaling wait for transformers.
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        hidden_size=head_dim,
        num_attention_heads=1,
        head_dim=head_dim,
        max_position_embeddings=max_positions,
        rope_parameters={**scaling, "rope_theta": theta},
    )
    compute = ROPE_INIT_FUNCTIONS[scaling["rope_type"]]
    frequencies, scale = compute(config, torch.device("cpu"))
    return frequencies, float(scale)
