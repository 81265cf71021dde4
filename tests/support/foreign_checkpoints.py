"""Drafters in files as other projects write them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from drafter_svc.formats.checkpoint import load_checkpoint
from drafter_svc.formats.declared import UserOverrides
from drafter_svc.formats.specforge_config import read_flat, write_flat
from drafter_svc.formats.writer import write_specforge
from drafter_svc.model.config import CheckpointError, DrafterConfig
from tests.support.tiny_drafter import tiny_config, tiny_drafter

IDS = torch.arange(40) + torch.arange(40) // 2
GIVEN = UserOverrides(target_fingerprint="feed")
Tensors = dict[str, Tensor]


def flat(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(write_flat(tiny_config()))
    return values | changes


def read(values: dict[str, Any], given: UserOverrides | None = None) -> DrafterConfig:
    return read_flat(values).config(given or UserOverrides())


def foreign(**changes: Any) -> dict[str, Any]:
    """As others write it: nothing of ours, ids in `eagle_config` only."""
    values = flat(**changes)
    for key in ("holdcourse", "eagle_aux_hidden_state_layer_ids"):
        del values[key]
    values["eagle_config"]["eagle_aux_hidden_state_layer_ids"] = [2, 5, 9]
    return values


def written(folder: Path, **changes: Any) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and config of a drafter in the SpecForge layout, as others would write them."""
    config = tiny_config(**({"aux_layers": (2, 3, 5)} | changes))
    ids = IDS if config.draft_vocab_size == 40 else torch.arange(config.draft_vocab_size)
    write_specforge(folder / "original", tiny_drafter(config), ids)
    tensors = safetensors.torch.load_file(folder / "original" / "model.safetensors")
    values = json.loads((folder / "original" / "config.json").read_text())
    del values["holdcourse"], values["eagle_aux_hidden_state_layer_ids"]
    return tensors, values


def put(folder: Path, tensors: Tensors, values: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def check_same(folder: Path, original: Path, given: UserOverrides = GIVEN) -> None:
    ours = load_checkpoint(original, dtype=torch.float32)
    theirs = load_checkpoint(folder, dtype=torch.float32, given=given)
    assert theirs.config == ours.config
    assert torch.equal(theirs.target_ids, ours.target_ids)
    for name, tensor in ours.module.state_dict().items():
        assert torch.equal(theirs.module.state_dict()[name], tensor), name


def refusal(folder: Path, given: UserOverrides = GIVEN) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder, dtype=torch.float32, given=given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def renamed(tensors: Tensors, rename: Callable[[str], str]) -> Tensors:
    return {rename(name): tensor for name, tensor in tensors.items()}
