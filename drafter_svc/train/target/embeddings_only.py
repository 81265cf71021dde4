"""A target without its layers, read from a checkpoint folder tensor by tensor."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import cached_file

from speckernels.fingerprint import fingerprint_of_rows
from specserve.model_source import ModelSource

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


def load_ends(source: ModelSource, device: str) -> tuple[Any, str]:
    """Embeddings, final norm and output layer in bf16, and the fingerprint of the whole target.

    Returns the target's model with an empty list of layers. Only the first row of each other
    tensor is read. Raises ``ValueError`` when the weights are not safetensors under the names of
    the model's parameters.
    """
    config = AutoConfig.from_pretrained(source.location)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    names = dict(model.named_parameters())
    try:
        files = _Files(source.location)
        fingerprint = fingerprint_of_rows(
            (name, weight.shape, files.first_row(name)) for name, weight in names.items()
        )
        ends = (model.get_input_embeddings(), model.base_model.norm, model.get_output_embeddings())
        named = {id(weight): name for name, weight in names.items()}
        read: dict[str, nn.Parameter] = {}
        for module in ends:
            name = named[id(module.weight)]
            if name not in read:
                weight = files.whole(name).to(device, torch.bfloat16)
                read[name] = nn.Parameter(weight, requires_grad=False)
            module.weight = read[name]
    except (KeyError, AttributeError, SafetensorError) as error:
        raise ValueError(
            f"{source.name} cannot be read without its layers ({error}): "
            "give a folder of safetensors that names tensors as the model does"
        ) from None
    model.base_model.layers = nn.ModuleList()
    return model.eval(), fingerprint


class _Files:
    """The safetensors files of a checkpoint. Unknown names raise ``KeyError``."""

    def __init__(self, location: str) -> None:
        self._location = location
        index = self._find(_INDEX)
        self._shards: dict[str, str] | None = None
        if index is not None:
            self._shards = json.loads(Path(index).read_text())["weight_map"]

    def whole(self, name: str) -> Tensor:
        with safe_open(self._path(name), framework="pt") as weights:
            tensor: Tensor = weights.get_tensor(name)
        return tensor

    def first_row(self, name: str) -> Tensor:
        with safe_open(self._path(name), framework="pt") as weights:
            row: Tensor = weights.get_slice(name)[:1]
        return row

    def _path(self, name: str) -> str:
        shard = _SINGLE if self._shards is None else self._shards[name]
        path = self._find(shard)
        if path is None:
            raise KeyError(f"there is no {shard}")
        return path

    def _find(self, file: str) -> str | None:
        path: str | None = cached_file(
            self._location,
            file,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return path
