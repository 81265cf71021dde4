"""Reads the embeddings of a target, without the rest of it where its files allow that."""

import json
from pathlib import Path

import gguf
import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import cached_file

from specwire.settings import StartError
from specwire.target import TargetSource

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_GGUF_NAME = "token_embd.weight"


def load_embedding(source: TargetSource, dtype: torch.dtype, trust_remote_code: bool) -> Tensor:
    """The input embeddings of a target, ``[vocab, H]`` on the CPU.

    Raises:
        StartError: the target cannot be found or read.
    """
    try:
        if source.gguf_file is not None:
            return _from_gguf(Path(source.location) / source.gguf_file).to(dtype)
        embedding = _from_safetensors(source, trust_remote_code)
        if embedding is None:
            embedding = _from_model(source, dtype, trust_remote_code)
        return embedding.to(dtype)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StartError(f"Cannot read the embeddings of {source.name}: {reason}") from None


def _from_gguf(path: Path) -> Tensor:
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name == _GGUF_NAME:
            return torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    raise ValueError(f"it has no tensor {_GGUF_NAME}.")


def _from_safetensors(source: TargetSource, trust_remote_code: bool) -> Tensor | None:
    """None where the weights are kept in another format or under another name."""
    config = transformers.AutoConfig.from_pretrained(
        source.location, trust_remote_code=trust_remote_code
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            config, trust_remote_code=trust_remote_code
        )
    module = model.get_input_embeddings()
    name = next(n for n, candidate in model.named_modules() if candidate is module) + ".weight"
    shard = _SINGLE
    index = _find(source, _INDEX)
    if index is not None:
        shard = json.loads(Path(index).read_text())["weight_map"].get(name, _SINGLE)
    path = _find(source, shard)
    if path is None:
        return None
    with safe_open(path, framework="pt") as weights:
        return weights.get_tensor(name) if name in weights.keys() else None  # noqa: SIM118


def _find(source: TargetSource, file: str) -> str | None:
    path: str | None = cached_file(
        source.location,
        file,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return path


def _from_model(source: TargetSource, dtype: torch.dtype, trust_remote_code: bool) -> Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source.location, dtype=dtype, trust_remote_code=trust_remote_code
    )
    weight: Tensor = model.get_input_embeddings().weight
    return weight.detach().clone()
