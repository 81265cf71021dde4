"""Drafter checkpoints as serving and training load and save them.

Any format of ``drafter_svc.formats`` is loaded. Saved is a folder with ``config.json`` and
``model.safetensors`` in the SpecForge layout, whose embeddings (and head, where draft tokens are
all of the target's) are the target's unless the drafter has its own.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from drafter_svc.formats.declared import UserOverrides
from drafter_svc.formats.reader import read_raw_checkpoint
from drafter_svc.formats.writer import write_specforge
from drafter_svc.model.config import DrafterConfig
from drafter_svc.model.eagle import EagleDrafter


@dataclass(frozen=True, slots=True)
class LoadedDrafter:
    """A drafter in evaluation mode; ``checkpoint_hash`` is the SHA-256 of its files, hex.

    One whose config has no ``own_head`` computes logits once `EagleDrafter.borrow_head` was called
    with its target's. ``notes`` are sentences on what was taken in one of several ways.
    """

    module: EagleDrafter
    config: DrafterConfig
    d2t: Tensor
    checkpoint_hash: str
    notes: tuple[str, ...] = ()

    @property
    def target_ids(self) -> Tensor:
        """Target id of each draft token, int64 ``[draft_vocab]``, ascending."""
        return torch.arange(len(self.d2t), device=self.d2t.device) + self.d2t


def load_checkpoint(
    path_or_id: str | Path,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    given: UserOverrides | None = None,
) -> LoadedDrafter:
    """Load a folder or a Hugging Face id with its weights cast to ``dtype``.

    ``given`` says what the checkpoint leaves open. Raises ``CheckpointError`` when a file is
    missing, unreadable or truncated, a tensor is missing, unexpected, of another shape or not
    finite, the draft vocabulary is not consistent, or something stays open.
    """
    found = read_raw_checkpoint(path_or_id)
    built = found.build(given or UserOverrides())
    module = built.module.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return LoadedDrafter(
        module, built.config, built.d2t.to(device), found.files.digest, built.notes
    )


def save_checkpoint(folder: str | Path, module: EagleDrafter, target_ids: Tensor) -> None:
    """Write ``module`` in bf16 with its config; ``target_ids`` is int64 ``[draft_vocab]``.

    Each file replaces its predecessor in one step. Raises ``CheckpointError`` for weights that are
    not finite or a vocabulary that is not strictly ascending within the target's.
    """
    write_specforge(folder, module, target_ids)
