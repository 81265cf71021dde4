"""The files of a checkpoint: in a folder, or of a Hugging Face id."""

import hashlib
import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import safetensors.torch
import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from torch import Tensor

from drafter_svc.model.config import CheckpointError, require

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_TORCH_FILES = ("pytorch_model.bin", "model.pt")
_INDICES = tuple(f"{name}.index.json" for name in (WEIGHTS_FILE, _TORCH_FILES[0]))


@dataclass(frozen=True, slots=True)
class Files:
    """``digest`` is a SHA-256 of all the files that make the checkpoint, hex."""

    folder: Path
    config: str
    tensors: dict[str, Tensor]
    digest: str
    weight_bytes: int


def read_files(path_or_id: str | Path) -> Files:
    """Read a checkpoint's config and tensors (on the CPU, in the dtypes of the file).

    Weights are ``model.safetensors``, ``pytorch_model.bin``, the shards of either, or
    ``model.pt``. The latter kinds are loaded without running code. Raises ``CheckpointError`` for
    what is missing or damaged.
    """
    folder = locate(path_or_id)
    config = _read(folder / CONFIG_FILE)
    weights = _weight_files(folder)
    digest = hashlib.sha256(hashlib.sha256(config).digest())
    tensors: dict[str, Tensor] = {}
    for path in weights:
        _digest(digest, path)
        part = _load(path)
        twice = ", ".join(sorted(part.keys() & tensors.keys()))
        require(not twice, f"{path.name} holds tensors that another file has too: {twice}")
        tensors |= part
    try:
        text = config.decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"{folder / CONFIG_FILE} is not UTF-8 text") from None
    size = sum(path.stat().st_size for path in weights)
    return Files(folder, text, tensors, digest.hexdigest(), size)


def locate(path_or_id: str | Path) -> Path:
    """The folder itself, or the local snapshot of a Hugging Face id, fetched if need be."""
    folder = Path(path_or_id).expanduser()
    name = str(path_or_id)
    if folder.exists() or isinstance(path_or_id, Path) or name.startswith((".", "/", "~")):
        return folder
    try:
        snapshot = Path(
            huggingface_hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors"])
        )
        if not any(snapshot.glob("*.safetensors")):
            huggingface_hub.snapshot_download(
                name, allow_patterns=[*_TORCH_FILES, "pytorch_model-*.bin"]
            )
    except HFValidationError:
        raise CheckpointError(
            f"there is no folder {name}, and it is not a Hugging Face id"
        ) from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise CheckpointError(f"cannot fetch {name} from Hugging Face: {reason}") from None
    return snapshot


def _weight_files(folder: Path) -> list[Path]:
    single = folder / WEIGHTS_FILE
    if single.exists():
        return [single]
    for index in (folder / name for name in _INDICES):
        if index.exists():
            return _shards(index)
    found = [folder / name for name in _TORCH_FILES if (folder / name).exists()]
    others = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_file()))
    require(
        bool(found),
        f"cannot read {single}: No such file or directory, nor is there an index of its shards, "
        f"or {' or '.join(_TORCH_FILES)} ({folder} has {others})",
    )
    return found[:1]


def _shards(index: Path) -> list[Path]:
    try:
        names = set(json.loads(_read(index))["weight_map"].values())
        return [index.with_name(Path(name).name) for name in sorted(names)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{index} is not an index of shards") from None


def _load(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged or cut short: {error}") from None
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is damaged or holds more than tensors: {reason}") from None
    require(
        isinstance(loaded, dict) and all(isinstance(value, Tensor) for value in loaded.values()),
        f"{path} must hold a dict of tensors by name",
    )
    return dict(loaded)


def _digest(digest: "hashlib._Hash", path: Path) -> None:
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
