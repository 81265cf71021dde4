"""Reads a target's embeddings or output layer, without the rest of it where its files allow that.

Only targets that need transformers wait for its import.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from specserve.gguf_cache import UnpackedGguf
from specserve.model_source import ModelSource
from specserve.settings import StartError

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_GGUF_EMBEDDING, _GGUF_HEAD = "token_embd.weight", "output.weight"


def load_embedding(source: ModelSource, dtype: torch.dtype, trust_remote_code: bool) -> Tensor:
    """The input embeddings of a target, ``[vocab, H]`` on the CPU.

    Raises:
        StartError: the target cannot be found or read.
    """
    return _load(source, dtype, trust_remote_code, head=False)


def load_head(source: ModelSource, dtype: torch.dtype, trust_remote_code: bool) -> Tensor:
    """The output layer of a target, ``[vocab, H]`` on the CPU; its embeddings where it is tied.

    Raises:
        StartError: the target cannot be found or read.
    """
    return _load(source, dtype, trust_remote_code, head=True)


def _load(source: ModelSource, dtype: torch.dtype, trust_remote_code: bool, head: bool) -> Tensor:
    what = "output layer" if head else "embeddings"
    try:
        rows = _from_unpacked(source.unpacked) if source.unpacked and not head else None
        if rows is None and source.file is not None:
            rows = _from_gguf(source.file, (_GGUF_HEAD,) * head + (_GGUF_EMBEDDING,))
        if rows is None:
            rows = _from_safetensors(source, trust_remote_code, head)
        if rows is None:
            rows = _from_model(source, dtype, trust_remote_code, head)
        return rows.to(dtype)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StartError(f"Cannot read the {what} of {source.name}: {reason}") from None


def _from_unpacked(unpacked: UnpackedGguf) -> Tensor | None:
    """None where the weights are kept under another name. Needs no transformers."""

    def find(file: str) -> str | None:
        path = Path(unpacked.folder, file)
        return str(path) if path.is_file() else None

    return _tensor(unpacked.embedding, find)


def _from_gguf(path: Path, names: Sequence[str]) -> Tensor:
    """The first tensor that is there; a file with a tied head has none for it."""
    import gguf

    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name in names:
        if name in tensors:
            found = tensors[name]
            return torch.tensor(gguf.quants.dequantize(found.data, found.tensor_type))
    raise ValueError(f"it has no tensor {' or '.join(names)}.")


def _from_safetensors(source: ModelSource, trust_remote_code: bool, head: bool) -> Tensor | None:
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
    model.tie_weights()
    weight = _module(model, head).weight
    name = next(n for n, candidate in model.named_parameters() if candidate is weight)
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


def _from_model(
    source: ModelSource, dtype: torch.dtype, trust_remote_code: bool, head: bool
) -> Tensor:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        source.location, dtype=dtype, trust_remote_code=trust_remote_code
    )
    weight: Tensor = _module(model, head).weight
    return weight.detach().clone()


def _module(model: Any, head: bool) -> Any:
    return model.get_output_embeddings() if head else model.get_input_embeddings()
