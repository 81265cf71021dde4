"""Features as a drafter's first layer reads them: normed, and projected to its width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class FeatureProjection:
    """The first step of EAGLE-3's drafter, which may be taken where the features are.

    `norms` [parts, width / parts] are RMSNorms of equal parts of a row, see arXiv 2605.09992: one
    per captured state, or one over all of them. `linear` maps [n, width] to [n, projected width].
    Either may be missing.
    """

    norms: torch.Tensor | None
    eps: float
    linear: Callable[[torch.Tensor], torch.Tensor] | None

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Project captured states side by side [n, width], of the weights' dtype and device."""
        if self.norms is not None:
            parts = features.view(-1, *self.norms.shape).unbind(1)
            normed = [
                functional.rms_norm(part, part.shape[-1:], norm, self.eps)
                for part, norm in zip(parts, self.norms, strict=True)
            ]
            features = normed[0] if len(normed) == 1 else torch.cat(normed, -1)
        return features if self.linear is None else self.linear(features)
