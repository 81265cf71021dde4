"""A checkpoint of any format, read but not put together yet."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from drafter_svc.formats import tensor_names
from drafter_svc.formats.declared import DeclaredConfig, UserOverrides
from drafter_svc.formats.draft_vocab import take_vocabulary
from drafter_svc.formats.files import CONFIG_FILE, Files, read_files
from drafter_svc.formats.inferred import infer_config
from drafter_svc.formats.json_section import parse
from drafter_svc.formats.specforge_config import read_flat
from drafter_svc.formats.speculators_config import is_nested, read_nested
from drafter_svc.model.config import CheckpointError, DrafterConfig, require
from drafter_svc.model.eagle import EagleDrafter

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class Built:
    """A drafter put together; ``notes`` are sentences on what was taken in one of several ways.

    ``d2t`` is int64 ``[draft_vocab]``, see `take_vocabulary`.
    """

    module: EagleDrafter
    d2t: Tensor
    config: DrafterConfig
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RawCheckpoint:
    """What files hold: facts of the config, and tensors under the names of ``EagleDrafter``."""

    layout: str
    facts: DeclaredConfig
    tensors: dict[str, Tensor]
    files: Files

    def build(self, given: UserOverrides, *, fingerprint_needed: bool = True) -> Built:
        """The module with its weights. One without a head of its own has yet to borrow it.

        Raises ``CheckpointError`` for what is missing, unexpected, of another shape or not finite.
        """
        config = self.facts.config(given, fingerprint_needed=fingerprint_needed)
        tensors = dict(self.tensors)
        d2t, doubts = take_vocabulary(tensors, config)
        with torch.device("meta"):
            module = EagleDrafter(config)
        check_weights(tensors, module)
        module.load_state_dict(tensors, assign=True)
        return Built(module, d2t, config, (*self.facts.notes, *doubts))


def read_raw_checkpoint(path_or_id: str | Path) -> RawCheckpoint:
    """Read a folder or a Hugging Face id. Raises ``CheckpointError`` in one sentence."""
    files = read_files(path_or_id)
    values = parse(files.config, CONFIG_FILE)
    nested = is_nested(values)
    facts = read_nested(values) if nested else read_flat(values)
    layout = tensor_names.recognize(files.tensors, nested, "eagle_config" in values or facts.own)
    tensors = tensor_names.to_own_names(files.tensors)
    shapes = facts.values
    tensor_names.split_packed(
        tensors, shapes["num_attention_heads"], shapes["num_key_value_heads"], shapes["head_dim"]
    )
    tensor_names.settle_further_norms(tensors)
    infer_config(tensors, facts, strict=nested or facts.own)
    return RawCheckpoint(layout, facts, tensors, replace(files, tensors={}))


def check_weights(tensors: Mapping[str, Tensor], module: EagleDrafter) -> None:
    """Refuse tensors that differ from the module's parameters, or are not finite."""
    expected = module.state_dict()
    for name, tensor in expected.items():
        if name not in tensors:
            raise CheckpointError(f"the weights have no tensor {name}")
        shape, found = list(tensor.shape), list(tensors[name].shape)
        if found != shape:
            hint = tensor_names.shape_hint(name, found, module.config)
            advice = f": {hint} if the drafter was trained so" if hint else ""
            raise CheckpointError(f"{name} has shape {found}, expected {shape}{advice}")
    unexpected = sorted(tensors.keys() - expected.keys())
    hints = {tensor_names.hint(name, module.config) for name in unexpected} - {""}
    advice = f"; {' and '.join(sorted(hints))} if the drafter was trained so" if hints else ""
    require(
        not unexpected,
        "the weights have tensors that config.json does not explain: "
        f"{', '.join(unexpected)}{advice}",
    )
    for name, tensor in tensors.items():
        require(
            tensor.dtype in _DTYPES,
            f"{name} is {str(tensor.dtype).removeprefix('torch.')}, this drafter reads weights of "
            "16, 32 or 64 bits only: save them so, with their scales multiplied in",
        )
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{name} holds values that are not finite")
