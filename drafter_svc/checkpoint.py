"""Drafter checkpoints: a folder with ``config.json`` and ``model.safetensors``, SpecForge layout.

Beside the module's weights the file holds the draft vocabulary: ``d2t`` (int64 ``[draft]``, the
target id of draft token ``j`` is ``j + d2t[j]``) and ``t2d`` (bool ``[vocab]``, the target ids that
can be drafted). The embeddings are the target's and not part of the file.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from drafter_svc.config import CheckpointError, DrafterConfig
from drafter_svc.eagle import EagleDrafter

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True, slots=True)
class LoadedDrafter:
    """A drafter in evaluation mode; ``checkpoint_hash`` is the SHA-256 of its two files, hex."""

    module: EagleDrafter
    config: DrafterConfig
    d2t: Tensor
    checkpoint_hash: str

    @property
    def target_ids(self) -> Tensor:
        """Target id of each draft token, int64 ``[draft_vocab]``, ascending."""
        return torch.arange(len(self.d2t), device=self.d2t.device) + self.d2t


def load_checkpoint(
    folder: str | Path, *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> LoadedDrafter:
    """Load a checkpoint folder with its weights cast to ``dtype``.

    Raises ``CheckpointError`` when a file is missing, unreadable or truncated, a tensor is missing,
    unexpected, of another shape or not finite, or the draft vocabulary is not consistent.
    """
    folder = Path(folder)
    config_bytes = _read(folder / CONFIG_FILE)
    weight_bytes = _read(folder / WEIGHTS_FILE)
    try:
        config = DrafterConfig.from_json(config_bytes.decode())
    except UnicodeDecodeError:
        raise CheckpointError(f"{folder / CONFIG_FILE} is not UTF-8 text") from None
    try:
        tensors = safetensors.torch.load(weight_bytes)
    except SafetensorError as error:
        raise CheckpointError(f"{folder / WEIGHTS_FILE} is damaged or cut short: {error}") from None
    d2t = _draft_vocabulary(tensors, config)
    with torch.device("meta"):
        module = EagleDrafter(config)
    _check_weights(tensors, module)
    module.load_state_dict(tensors, assign=True)
    digest = hashlib.sha256(hashlib.sha256(config_bytes).digest() + weight_bytes).hexdigest()
    module = module.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return LoadedDrafter(module, config, d2t.to(device), digest)


def save_checkpoint(folder: str | Path, module: EagleDrafter, target_ids: Tensor) -> None:
    """Write ``module`` in bf16 with its config; ``target_ids`` is int64 ``[draft_vocab]``.

    Each file replaces its predecessor in one step. Raises ``CheckpointError`` for weights that are
    not finite or a vocabulary that is not strictly ascending within the target's.
    """
    config = module.config
    tensors = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in module.state_dict().items()
    }
    target_ids = target_ids.to("cpu", torch.int64)
    tensors["d2t"] = target_ids - torch.arange(len(target_ids))
    tensors["t2d"] = torch.zeros(config.vocab_size, dtype=torch.bool)
    _check_ids(target_ids, config)
    tensors["t2d"][target_ids] = True
    _check_weights({k: v for k, v in tensors.items() if k not in ("d2t", "t2d")}, module)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / WEIGHTS_FILE, safetensors.torch.save(tensors))
    _replace(folder / CONFIG_FILE, config.to_json().encode())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.replace(path)


def _draft_vocabulary(tensors: dict[str, Tensor], config: DrafterConfig) -> Tensor:
    """Take ``d2t`` and ``t2d`` out of ``tensors`` and check them against each other."""
    shapes = {"d2t": (config.draft_vocab_size,), "t2d": (config.vocab_size,)}
    dtypes = {"d2t": torch.int64, "t2d": torch.bool}
    for name, shape in shapes.items():
        if name not in tensors:
            raise CheckpointError(f"{WEIGHTS_FILE} has no tensor {name}")
        _check_shape(name, tensors[name], shape)
        if tensors[name].dtype != dtypes[name]:
            raise CheckpointError(f"{name} is {tensors[name].dtype}, expected {dtypes[name]}")
    d2t, t2d = tensors.pop("d2t"), tensors.pop("t2d")
    target_ids = torch.arange(len(d2t)) + d2t
    _check_ids(target_ids, config)
    if not torch.equal(t2d.nonzero().flatten(), target_ids):
        raise CheckpointError("d2t and t2d name different draft vocabularies")
    return d2t


def _check_ids(target_ids: Tensor, config: DrafterConfig) -> None:
    if len(target_ids) != config.draft_vocab_size:
        raise CheckpointError(
            f"the draft vocabulary has {len(target_ids)} ids, expected {config.draft_vocab_size}"
        )
    low, high = int(target_ids.min()), int(target_ids.max())
    if low < 0 or high >= config.vocab_size:
        worst = low if low < 0 else high
        raise CheckpointError(f"d2t maps to id {worst}, outside [0, {config.vocab_size})")
    if not bool((target_ids.diff() > 0).all()):
        raise CheckpointError("d2t does not map to strictly ascending target ids")


def _check_weights(tensors: dict[str, Tensor], module: EagleDrafter) -> None:
    expected = module.state_dict()
    for name, tensor in expected.items():
        if name not in tensors:
            raise CheckpointError(f"{WEIGHTS_FILE} has no tensor {name}")
        _check_shape(name, tensors[name], tuple(tensor.shape))
    unexpected = ", ".join(sorted(tensors.keys() - expected.keys()))
    if unexpected:
        raise CheckpointError(
            f"{WEIGHTS_FILE} has tensors that its config does not explain: {unexpected}"
        )
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise CheckpointError(f"{name} is {tensor.dtype}, expected a floating-point dtype")
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{name} holds values that are not finite")


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise CheckpointError(f"{name} has shape {list(tensor.shape)}, expected {list(shape)}")
