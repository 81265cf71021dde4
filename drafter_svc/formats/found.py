"""A checkpoint of any format, read but not put together yet."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from drafter_svc.config import CheckpointError, DrafterConfig, require
from drafter_svc.eagle import EagleDrafter
from drafter_svc.formats import names
from drafter_svc.formats.facts import Facts, Given
from drafter_svc.formats.files import CONFIG_FILE, Files, read_files
from drafter_svc.formats.flat import read_flat
from drafter_svc.formats.nested import is_nested, read_nested
from drafter_svc.formats.section import parse
from drafter_svc.formats.vocabulary import take_vocabulary


@dataclass(frozen=True, slots=True)
class Found:
    """What files hold: facts of the config, and tensors under the names of ``EagleDrafter``."""

    layout: str
    facts: Facts
    tensors: dict[str, Tensor]
    files: Files

    def build(
        self, given: Given, *, fingerprint_needed: bool = True
    ) -> tuple[EagleDrafter, Tensor, DrafterConfig]:
        """The module with its weights, ``d2t``, and the config.

        Raises ``CheckpointError`` for what is missing, unexpected, of another shape or not finite.
        """
        config = self.facts.config(given, fingerprint_needed=fingerprint_needed)
        tensors = dict(self.tensors)
        d2t = take_vocabulary(tensors, config)
        with torch.device("meta"):
            module = EagleDrafter(config)
        check_weights(tensors, module)
        module.load_state_dict(tensors, assign=True)
        return module, d2t, config


def find(path_or_id: str | Path) -> Found:
    """Read a folder or a Hugging Face id. Raises ``CheckpointError`` in one sentence."""
    files = read_files(path_or_id)
    values = parse(files.config, CONFIG_FILE)
    nested = is_nested(values)
    facts = read_nested(values) if nested else read_flat(values)
    layout = names.recognize(files.tensors, nested, "eagle_config" in values or facts.own)
    tensors = names.to_own_names(files.tensors)
    shapes = facts.values
    names.split_packed(
        tensors, shapes["num_attention_heads"], shapes["num_key_value_heads"], shapes["head_dim"]
    )
    names.settle_further_norms(tensors)
    facts.values["own_embeddings"] = "embed_tokens.weight" in tensors
    _complete(tensors, facts)
    return Found(layout, facts, tensors, replace(files, tensors={}))


def check_weights(tensors: Mapping[str, Tensor], module: EagleDrafter) -> None:
    """Refuse tensors that differ from the module's parameters, or are not finite."""
    expected = module.state_dict()
    for name, tensor in expected.items():
        if name not in tensors:
            raise CheckpointError(f"the weights have no tensor {name}")
        shape = list(tensor.shape)
        if list(tensors[name].shape) != shape:
            raise CheckpointError(f"{name} has shape {list(tensors[name].shape)}, expected {shape}")
    unexpected = sorted(tensors.keys() - expected.keys())
    hints = {names.hint(name, module.config) for name in unexpected} - {""}
    advice = f"; {' and '.join(sorted(hints))} if the drafter was trained so" if hints else ""
    require(
        not unexpected,
        "the weights have tensors that config.json does not explain: "
        f"{', '.join(unexpected)}{advice}",
    )
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise CheckpointError(f"{name} is {tensor.dtype}, expected a floating-point dtype")
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{name} holds values that are not finite")


def _complete(tensors: dict[str, Tensor], facts: Facts) -> None:
    """Write out what formats leave unsaid: a tied head, and no bias on the output projection."""
    if facts.tied:
        require(
            "embed_tokens.weight" in tensors,
            "config.json: tie_word_embeddings is true but there is no embed_tokens.weight: set it "
            "to false, or add the embeddings",
        )
        embeddings = tensors["embed_tokens.weight"]
        # A tensor of its own: files hold no shared memory, and training moves the head alone.
        head = tensors.setdefault("lm_head.weight", embeddings.clone())
        require(
            head.shape == embeddings.shape and head.equal(embeddings),
            "config.json: tie_word_embeddings is true but lm_head.weight is not embed_tokens.weight"
            ": set it to false if the head was trained",
        )
    if facts.values["attention_bias"] and not facts.output_bias:
        for name in [n for n in tensors if n.endswith("self_attn.o_proj.weight")]:
            weight = tensors[name]
            bias = name.replace(".weight", ".bias")
            tensors.setdefault(bias, torch.zeros(len(weight), dtype=weight.dtype))
