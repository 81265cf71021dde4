"""Writers: a folder with ``config.json`` and ``model.safetensors`` in bf16."""

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from drafter_svc.formats import tensor_names
from drafter_svc.formats.draft_vocab import vocabulary_tensors
from drafter_svc.formats.files import CONFIG_FILE, WEIGHTS_FILE
from drafter_svc.formats.reader import check_weights
from drafter_svc.formats.specforge_config import write_flat
from drafter_svc.formats.speculators_config import write_nested
from drafter_svc.model.eagle import EagleDrafter


def write_specforge(folder: str | Path, module: EagleDrafter, target_ids: Tensor) -> None:
    """The layout of SpecForge, which SGLang and vLLM read.

    ``target_ids`` is int64 ``[draft_vocab]``. Each file replaces its predecessor in one step.
    Raises ``CheckpointError`` for weights or a vocabulary that no reader would take.
    """
    vocabulary = vocabulary_tensors(target_ids, module.config)
    tensors = tensor_names.to_specforge(_weights(module)) | vocabulary
    _write(Path(folder), tensors, write_flat(module.config))


def write_speculators(
    folder: str | Path, module: EagleDrafter, target_ids: Tensor, verifier: str
) -> None:
    """The layout of the speculators library, which vLLM reads too; else as `write_specforge`.

    ``verifier`` is the target's Hugging Face id or folder.
    """
    config = module.config
    vocabulary = vocabulary_tensors(target_ids, config)
    text = write_nested(config, verifier)
    # The library registers no vocabulary where all target ids can be drafted.
    full = config.draft_vocab_size == config.vocab_size
    tensors = tensor_names.to_speculators(_weights(module)) | ({} if full else vocabulary)
    _write(Path(folder), tensors, text)


def _weights(module: EagleDrafter) -> dict[str, Tensor]:
    with torch.device("meta"):
        own = EagleDrafter(module.config)  # as it is without what it borrows
    weights = module.state_dict()
    tensors = {
        name: weights[name].detach().to("cpu", torch.bfloat16).contiguous()
        for name in own.state_dict()
    }
    check_weights(tensors, own)
    return tensors


def _write(folder: Path, tensors: dict[str, Tensor], config: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / WEIGHTS_FILE, safetensors.torch.save(tensors, {"format": "pt"}))
    _replace(folder / CONFIG_FILE, config.encode())


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.replace(path)
