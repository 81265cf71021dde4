"""Muon and AdamW over fp32 master weights of a bf16 module, and the learning rate over a run."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# torch's "match_rms_adamw" makes an update 0.2 times the rate; this gives both optimizers updates
# of the size of the rate.
_MUON_SCALE = 5.0


class MasterOptimizer:
    """Computes in the module's bf16 weights and accumulates gradients and updates in fp32.

    With ``muon``, Muon updates the matrices inside the layers and AdamW the head and the norms;
    without, AdamW updates everything. Parameters that need no gradient stay as they are.
    """

    def __init__(self, module: nn.Module, *, clip: float, muon: bool = True) -> None:
        trained = {name: w for name, w in module.named_parameters() if w.requires_grad}
        names, self._weights = list(trained), list(trained.values())
        self._masters = [nn.Parameter(weight.detach().float()) for weight in self._weights]
        self._clip = clip
        hidden: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, master in zip(names, self._masters, strict=True):
            inner = muon and master.ndim == 2 and name != "lm_head.weight"
            (hidden if inner else others).append(master)
        adamw = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = [(adamw, 1.0)]
        if hidden:
            inner_optimizer = torch.optim.Muon(
                hidden, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
            )
            self._optimizers.append((inner_optimizer, _MUON_SCALE))
        module.to(torch.bfloat16)

    def gather(self) -> None:
        """Move the module's gradients into the masters', where those of several batches add up."""
        for master, weight in zip(self._masters, self._weights, strict=True):
            if weight.grad is None:
                continue
            if master.grad is None:
                master.grad = weight.grad.float()
            else:
                master.grad += weight.grad
            weight.grad = None

    @property
    def gradients(self) -> Sequence[Tensor]:
        """Gathered gradients of all parameters, zeros where there is none."""
        for master in self._masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        return [master.grad for master in self._masters if master.grad is not None]

    def step(self, learning_rate: float) -> float:
        """Apply the gathered gradients and clear them. Returns their norm before clipping.

        Raises ``FloatingPointError`` when a gradient is not finite; the weights stay as they are.
        """
        norm = nn.utils.clip_grad_norm_(self._masters, self._clip)
        if not bool(norm.isfinite()):
            raise FloatingPointError("a gradient is not finite; try a lower learning_rate")
        for optimizer, scale in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = scale * learning_rate
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            for master, weight in zip(self._masters, self._weights, strict=True):
                weight.copy_(master)
        return float(norm)

    def state_dict(self) -> dict[str, Any]:
        return {
            "masters": self._masters,
            "optimizers": [optimizer.state_dict() for optimizer, _ in self._optimizers],
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore masters, moments and with them the module's weights."""
        for (optimizer, _), saved in zip(self._optimizers, state["optimizers"], strict=True):
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


def chain_steps(stages: Sequence[int], progress: float) -> int:
    """Steps of training-time test: each of ``stages`` for an equal share of the run."""
    return stages[min(len(stages) - 1, int(progress * len(stages)))]
