"""Unpacks a GGUF target into the cache, so that only its first start takes long."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from specserve import logs
from specserve.model_source import ModelSource
from verifier_svc.model.loading.loader import load_tokenizer_files, loading, read_config, read_model

_log = logs.get(__name__)


def unpacked_target(source: ModelSource, dtype: torch.dtype, cache: Path) -> ModelSource:
    """A GGUF target in a folder that holds the same; any other as it is.

    Where the cache cannot be written, a warning says so and the file itself is read.

    Raises:
        TargetError: nothing that can be served is there.
    """
    name = str(dtype).removeprefix("torch.")
    found = source.cached(name, cache)
    if found.file is None or found.unpacked is not None:
        return found
    _log.info("unpacking the target, once", target=source.name, cache=str(cache))
    try:
        return source.unpack(name, cache, partial(_write, source, dtype))
    except OSError as error:
        _log.warning("the target stays packed, each start takes longer", reason=str(error))
        return source


def _write(source: ModelSource, dtype: torch.dtype, folder: Path) -> str:
    """Fill a folder; returns the name of the tensor of input embeddings.

    Raises:
        TargetError: the target cannot be served.
        OSError: the folder cannot be written.
    """
    with loading(source):
        config = read_config(source, trust_remote_code=False)
        model = read_model(source, config=config, dtype=dtype)
        embedding = model.get_input_embeddings()
        name = next(name for name, module in model.named_modules() if module is embedding)
    files = load_tokenizer_files(source, trust_remote_code=False)
    try:
        model.save_pretrained(folder)
        for file, content in files.items():
            (folder / file).write_bytes(content)
    except Exception as error:  # safetensors has its own kind for a full disk
        raise OSError(str(error)) from error
    return f"{name}.weight"
