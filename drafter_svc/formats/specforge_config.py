"""The flat ``config.json`` of SafeAILab, SpecForge, SGLang, vLLM and NeMo Automodel.

All keys lie at the top, those about captured states in ``eagle_config`` (or at the top too). This
project's own files are of this kind, with a section ``holdcourse``.
"""

import json
from collections.abc import Mapping
from typing import Any

from drafter_svc.formats.declared import DeclaredConfig
from drafter_svc.formats.json_section import Section
from drafter_svc.formats.llama_config import read_layers, write_layers
from drafter_svc.formats.refused_keys import EAGLE_FIXED, EAGLE_IGNORED, FLAT_FIXED
from drafter_svc.model.config import DrafterConfig, require

ARCHITECTURE = "LlamaForCausalLMEagle3"
# Known to this project only: no reader of EAGLE-3 may take the weights of another form for it.
MTP_ARCHITECTURE = "HoldcourseMtpHead"
AUX_LAYERS = "eagle_aux_hidden_state_layer_ids"
_OUTPUTS_OF_LAYERS = "target_layer_ids"
# Classes of EAGLE-3 over Llama's layers, by the kind of layer that a name itself says.
_ARCHITECTURES = {
    ARCHITECTURE: None,
    MTP_ARCHITECTURE: None,
    "Eagle3LlamaForCausalLM": None,  # vLLM, AngelSlim
    "LlamaEagle3DraftModel": None,  # NeMo Automodel
    "LlamaForCausalLM": None,  # SafeAILab's first
    "Qwen2ForCausalLM": None,
    "Qwen3ForCausalLM": "qwen3",
    "Qwen2ForCausalLMEagle3": None,
    "Qwen3ForCausalLMEagle3": "qwen3",
    "Eagle3Qwen3ForCausalLM": "qwen3",  # vLLM, as those below
    "Eagle3Qwen2_5vlForCausalLM": None,
    "Eagle3Qwen3vlForCausalLM": None,
    "CosyVoice3Eagle3LlamaForCausalLM": None,  # AngelSlim: other embeddings, the same layers
}
_OTHERS = {
    "PEagleDraftModel": "P-EAGLE, which drafts several tokens at once",
    "DFlashDraftModel": "DFlash, which drafts several tokens at once",
    "LlamaForCausalLMEagle": "an EAGLE-1 head",
    "EagleLlamaForCausalLM": "an EAGLE-1 head",
    "Eagle3DeepseekV2ForCausalLM": "attention over latent keys (MLA)",
    "Eagle3DeepseekV3ForCausalLM": "attention over latent keys (MLA)",
    "Eagle3MistralLarge3ForCausalLM": "attention over latent keys (MLA)",
    "DeepSeekMTPModel": "a multi-token-prediction head of its target's own layers",
}
_TOGGLES = ("fc_norm", "norm_output", "norm_before_fc", "norm_before_residual")


def read_flat(values: Mapping[str, Any]) -> DeclaredConfig:
    """Take a flat config. Raises ``CheckpointError`` for keys unknown, missing or at odds."""
    flat = Section(values, "config.json")
    architecture, kind = _read_architecture(flat)
    own = flat.optional("holdcourse", dict)
    layers = read_layers(flat, kind)
    flat.fixed(FLAT_FIXED)
    eagle = Section(flat.default("eagle_config", dict, {}), "eagle_config")
    eagle.fixed(EAGLE_FIXED)
    eagle.drop(EAGLE_IGNORED)
    toggles = _read_toggles(flat, eagle)
    aux_layers, convention = _read_aux_layers(flat, eagle)
    facts = DeclaredConfig(
        layers,
        norm_before_residual=toggles.pop("norm_before_residual"),
        aux_layers=aux_layers,
        aux_convention=convention,
        output_bias=layers.pop("output_bias"),
        tied=flat.default("tie_word_embeddings", bool, False),
    )
    facts.values |= {name: bool(value) for name, value in toggles.items()}
    facts.values["mtp_head"] = architecture == MTP_ARCHITECTURE
    for name, default in (
        ("target_hidden_size", "hidden_size"),
        ("draft_vocab_size", "vocab_size"),
    ):
        facts.values[name] = flat.default(name, int, layers[default])
    captured = flat.optional("num_aux_hidden_states", int)
    require(
        captured is None or facts.aux_layers is None or captured == len(facts.aux_layers),
        f"config.json: num_aux_hidden_states is {captured} but {AUX_LAYERS} are "
        f"{list(facts.aux_layers or ())}",
    )
    eagle.finish()
    flat.finish()
    if own is not None:
        read_own(facts, own)
    return facts


def write_flat(config: DrafterConfig) -> str:
    """The text of a ``config.json`` that vLLM, SGLang and `read_flat` take.

    That of an MTP head is for `read_flat` alone.
    """
    architecture = MTP_ARCHITECTURE if config.mtp_head else ARCHITECTURE
    flat: dict[str, Any] = {"architectures": [architecture], **write_layers(config)}
    for name in ("target_hidden_size", "draft_vocab_size", *_TOGGLES):
        flat[name] = getattr(config, name)
    flat["torch_dtype"] = "bfloat16"
    # vLLM reads the ids at the top, SGLang in eagle_config.
    flat[AUX_LAYERS] = list(config.aux_layers)
    flat["eagle_config"] = {"use_aux_hidden_state": True, AUX_LAYERS: list(config.aux_layers)}
    flat["holdcourse"] = write_own(config)
    return json.dumps(flat, indent=2) + "\n"


def write_own(config: DrafterConfig) -> dict[str, Any]:
    """What no other format has room for.

    The section's presence also says that aux layers are inputs to layers.
    """
    return {
        "target_fingerprint": config.target_fingerprint,
        "draft_temperature": config.draft_temperature,
        "training": dict(config.training),
    }


def read_own(facts: DeclaredConfig, values: Mapping[str, Any]) -> None:
    """Take what `write_own` wrote."""
    section = Section(values, "holdcourse")
    facts.target_fingerprint = section.take("target_fingerprint", str)
    facts.draft_temperature = section.take("draft_temperature", float)
    facts.training = section.take("training", dict)
    facts.aux_convention, facts.own = "input", True
    section.finish()


def read_aux_list(section: Section, name: str = AUX_LAYERS) -> tuple[int, ...] | None:
    """Aux layer ids as they are written; None too for an empty list, which names none."""
    layers = section.default(name, list, [])
    require(
        all(type(layer) is int for layer in layers),
        f"{section.name}: {name} must hold integers, got {layers!r}",
    )
    return tuple(layers) or None


def _read_architecture(flat: Section) -> tuple[str | None, str | None]:
    """The class that a config names, and the kind of layers that its name says."""
    names = flat.default("architectures", list, [])
    if not names:
        return None, None
    name = names[0] if len(names) == 1 and isinstance(names[0], str) else ""
    other = _OTHERS.get(name)
    require(
        other is None,
        f"config.json: architectures is {names!r}, {other}, which this drafter does not compute",
    )
    require(
        name in _ARCHITECTURES,
        f"config.json: architectures is {names!r}, this drafter computes EAGLE-3 over Llama's "
        f"layers, by the names {', '.join(sorted(_ARCHITECTURES))}",
    )
    return name, _ARCHITECTURES[name]


def _read_aux_layers(flat: Section, eagle: Section) -> tuple[tuple[int, ...] | None, str | None]:
    """Aux layer ids as they are written, and what they mean where their name says so."""
    outer, inner = read_aux_list(flat), read_aux_list(eagle)
    require(
        outer is None or inner is None or outer == inner,
        f"config.json: {AUX_LAYERS} are {list(outer or ())} at the top and {list(inner or ())} in "
        "eagle_config",
    )
    found = inner if outer is None else outer
    outputs = read_aux_list(flat, _OUTPUTS_OF_LAYERS)
    if outputs is None:
        return found, None
    require(
        found is None,
        f"config.json: {AUX_LAYERS} and {_OUTPUTS_OF_LAYERS} both name layers: remove one of them",
    )
    return outputs, "output"


def _read_toggles(flat: Section, eagle: Section) -> dict[str, bool | None]:
    toggles: dict[str, bool | None] = {}
    for name in _TOGGLES:
        # SGLang's first releases called it use_aux_norm.
        names = (name, "use_aux_norm") if name == "fc_norm" else (name,)
        outer, inner = flat.agreed(names, bool), eagle.agreed(names, bool)
        require(
            outer is None or inner is None or outer == inner,
            f"config.json: {name} is {outer} at the top and {inner} in eagle_config",
        )
        toggles[name] = inner if outer is None else outer
    return toggles
