"""Muon and AdamW over fp32 master weights of a bf16 module, and the learning rate over a run."""

import math
from typing import Any

import torch
from torch import nn

# torch's "match_rms_adamw" makes an update 0.2 times the rate; this gives both optimizers updates
# of the size of the rate.
_MUON_SCALE = 5.0


class MasterOptimizer:
    """Computes in the module's bf16 weights and accumulates updates in fp32 copies of them.

    Muon updates the matrices inside the layer, AdamW the head and the norms.
    """

    def __init__(self, module: nn.Module, *, clip: float) -> None:
        self._weights = list(module.parameters())
        self._masters = [nn.Parameter(weight.detach().float()) for weight in self._weights]
        self._clip = clip
        names = [name for name, _ in module.named_parameters()]
        hidden: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, master in zip(names, self._masters, strict=True):
            inner = master.ndim == 2 and name != "lm_head.weight"
            (hidden if inner else others).append(master)
        self._optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(hidden, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        ]
        module.to(torch.bfloat16)

    def step(self, learning_rate: float) -> float:
        """Apply the module's gradients and clear them. Returns their norm before clipping.

        Raises ``RuntimeError`` when a gradient is not finite.
        """
        for master, weight in zip(self._masters, self._weights, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None
        norm = nn.utils.clip_grad_norm_(self._masters, self._clip, error_if_nonfinite=True)
        for optimizer, scale in zip(self._optimizers, (_MUON_SCALE, 1.0), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = scale * learning_rate
            optimizer.step()
        with torch.no_grad():
            for master, weight in zip(self._masters, self._weights, strict=True):
                weight.copy_(master)
        return float(norm)

    def state_dict(self) -> dict[str, Any]:
        return {
            "masters": self._masters,
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore masters, moments and with them the module's weights."""
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        copies = zip(self._masters, self._weights, state["masters"], strict=True)
        for master, weight, value in copies:
            master.copy_(value)
            weight.copy_(value)


def learning_rate(peak: float, progress: float, warm_up: float) -> float:
    """Linear warm-up over the share ``warm_up`` of the run, then a cosine to zero at 1."""
    if progress < warm_up:
        return peak * progress / warm_up
    share = min(1.0, (progress - warm_up) / (1 - warm_up))
    return peak * 0.5 * (1 + math.cos(math.pi * share))


def chain_steps(final: int, progress: float) -> int:
    """Steps of training-time test: 1, 2, 4, ... in equal shares of the run, ending at ``final``."""
    stages = [1 << power for power in range((final - 1).bit_length())] + [final]
    return stages[min(len(stages) - 1, int(progress * len(stages)))]
