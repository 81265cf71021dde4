"""Reads the embeddings of a target, without the rest of it where its files allow that.

Only targets that need transformers wait for its import.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from specwire.settings import StartError
from specwire.target import TargetSource
from specwire.unpacked import Unpacked

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_GGUF_NAME = "token_embd.weight"


def load_embedding(source: TargetSource, dtype: torch.dtype, trust_remote_code: bool) -> Tensor:
    """The input embeddings of a target, ``[vocab, H]`` on the CPU.

    Raises:
        StartError: the target cannot be found or read.
    """
    try:
        embedding = _from_unpacked(source.unpacked) if source.unpacked else None
        if embedding is None and source.file is not None:
            embedding = _from_gguf(source.file)
        if embedding is None:
            embedding = _from_safetensors(source, trust_remote_code)
        if embedding is None:
            embedding = _from_model(source, dtype, trust_remote_code)
        return embedding.to(dtype)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StartError(f"Cannot read the embeddings of {source.name}: {reason}") from None


def _from_unpacked(unpacked: Unpacked) -> Tensor | None:
    """None where the weights are kept under another name. Needs no transformers."""

    def find(file: str) -> str | None:
        path = Path(unpacked.folder, file)
        return str(path) if path.is_file() else None

    return _tensor(unpacked.embedding, find)


def _from_gguf(path: Path) -> Tensor:
    import gguf

    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name == _GGUF_NAME:
            return torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    raise ValueError(f"it has no tensor {_GGUF_NAME}.")


def _from_safetensors(source: TargetSource, trust_remote_code: bool) -> Tensor | None:
    """None where the weights are kept in another format or under another name."""
    import transformers
    from transformers.utils import cached_file

    config = transformers.AutoConfig.from_pretrained(
        source.location, trust_remote_code=trust_remote_code
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            config, trust_remote_code=trust_remote_code
        )
    module = model.get_input_embeddings()
    name = next(n for n, candidate in model.named_modules() if candidate is module) + ".weight"
    find = partial(
        cached_file,
        source.location,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return _tensor(name, find)


def _tensor(name: str, find: Callable[[str], str | None]) -> Tensor | None:
    """A tensor of safetensors files, of which `find` gives the paths."""
    shard = _SINGLE
    index = find(_INDEX)
    if index is not None:
        shard = json.loads(Path(index).read_text())["weight_map"].get(name, _SINGLE)
    path = find(shard)
    if path is None:
        return None
    with safe_open(path, framework="pt") as weights:
        return weights.get_tensor(name) if name in weights.keys() else None  # noqa: SIM118


def _from_model(source: TargetSource, dtype: torch.dtype, trust_remote_code: bool) -> Tensor:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        source.location, dtype=dtype, trust_remote_code=trust_remote_code
    )
    weight: Tensor = model.get_input_embeddings().weight
    return weight.detach().clone()
