"""What ranks compare before they load: that all of them are about to load the same target."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import transformers

from specserve.model_source import ModelSource

_STRIDE = 1 << 20
_PAGE = 4 << 10


def weights_digest(source: ModelSource, config: Any, dtype: torch.dtype) -> dict[str, str]:
    """By name, what must be the same on all ranks.

    Weights are told apart by the commit of a Hugging Face id, and by a sample of local files:
    name, size, the first MiB, and the first 4 KiB of every further MiB. Files of one layout
    that differ only between those pages are not told apart.
    """
    return {
        "weights": _weights(source, config),
        "configuration": _configuration(config),
        "dtype": str(dtype),
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }


def _configuration(config: Any) -> str:
    """Of all but what a file says of itself, which an unpacked one says more of."""
    facts = config.to_diff_dict()
    for name in ("architectures", "dtype"):
        facts.pop(name, None)
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _weights(source: ModelSource, config: Any) -> str:
    folder = Path(source.location)
    if not folder.is_dir():
        return str(getattr(config, "_commit_hash", None))
    if source.gguf_file:
        files = [folder / source.gguf_file]
    else:  # transformers prefers the former, too
        files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(_STRIDE))
            for start in range(_STRIDE, size, _STRIDE):
                file.seek(start)
                digest.update(file.read(_PAGE))
    return digest.hexdigest()
