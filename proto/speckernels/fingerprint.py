"""The fingerprint of a target: the same weights have the same one, wherever they are loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch


def target_fingerprint(model: torch.nn.Module) -> str:
    """Name a target by a sample of its weights: the first row of every parameter, in bf16.

    The same weights loaded in fp32 or bf16 give the same fingerprint, on every device.
    """
    return fingerprint_of_rows(
        (name, parameter.shape, (parameter[:1] if parameter.dim() else parameter).detach())
        for name, parameter in model.named_parameters()
    )


def fingerprint_of_rows(parameters: Iterable[tuple[str, Sequence[int], torch.Tensor]]) -> str:
    """`target_fingerprint` from the name, shape and first row [1, ...] of each parameter."""
    digest = hashlib.sha256()
    for name, shape, row in sorted(parameters, key=lambda parameter: parameter[0]):
        digest.update(f"{name}{list(shape)}".encode())
        digest.update(row.to("cpu", torch.bfloat16).flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
