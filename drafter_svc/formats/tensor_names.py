"""Tensor names: those of every format to those of ``EagleDrafter``, ``d2t`` and ``t2d``."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from drafter_svc.model.config import DrafterConfig, require

_ALIASES = {
    "draft_id_to_target_id": "d2t",  # vLLM
    "aux_norm_low.weight": "fc_norm.0.weight",  # SGLang's first releases
    "aux_norm_mid.weight": "fc_norm.1.weight",
    "aux_norm_high.weight": "fc_norm.2.weight",
}
# What wraps the drafter where it is saved: ModelOpt's, torch's and transformers' modules.
_PREFIXES = re.compile(r"(?:(?:_orig_mod|draft_model|eagle_module|model|module)\.)+")
# The first layer by its number; ModelOpt numbers the layers of `midlayer` where there are several.
_LAYER = re.compile(r"(?:layers|midlayer)\.(\d+)\.")
# Parts of training, and tables that are computed.
_NOT_SERVED = re.compile(r"verifier_(lm_head|norm)\.weight|.*rotary_emb\.inv_freq")
_FURTHER_NORM = re.compile(r"(layers\.[1-9]\d*)\.hidden_norm\.weight")


def recognize(names: Mapping[str, object], nested: bool, eagle_config: bool) -> str:
    """Whose layout it is, as far as names tell."""
    if "midlayer.eh_proj.weight" in names:
        return "Holdcourse"
    if nested:
        return "speculators"
    if any(name.endswith("draft_id_to_target_id") for name in names):
        return "vLLM"
    if any(name.startswith("model.") for name in names):
        return "NeMo Automodel"
    if any(_PREFIXES.match(name) for name in names):
        return "SpecForge / SGLang, within another module"
    return "SpecForge / SGLang" if eagle_config else "SafeAILab"


def to_own_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names of ``EagleDrafter``. Raises ``CheckpointError`` where two meet."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bare = _PREFIXES.sub("", name, count=1) if _PREFIXES.match(name) else name
        if _NOT_SERVED.fullmatch(bare):
            continue
        bare = _ALIASES.get(bare, bare)
        layer = _LAYER.match(bare)
        if layer is not None:
            place = "midlayer" if int(layer[1]) == 0 else f"layers.{int(layer[1])}"
            bare = f"{place}.{bare[layer.end() :]}"
        require(bare not in renamed, f"two tensors stand for {bare}, one of them is {name}")
        renamed[bare] = tensor
    return renamed


def split_packed(tensors: dict[str, Tensor], heads: int, kv_heads: int, head_dim: int) -> None:
    """Split the projections that engines keep as one: ``qkv_proj`` and ``gate_up_proj``."""
    for name in [n for n in tensors if ".qkv_proj." in n or ".gate_up_proj." in n]:
        tensor = tensors.pop(name)
        packed, parts = "gate_up_proj", {"gate_proj": len(tensor) // 2, "up_proj": len(tensor) // 2}
        if ".qkv_proj." in name:
            packed, rows = "qkv_proj", kv_heads * head_dim
            parts = {"q_proj": heads * head_dim, "k_proj": rows, "v_proj": rows}
        require(
            sum(parts.values()) == len(tensor),
            f"{name} has {len(tensor)} rows, which {', '.join(parts)} do not make up",
        )
        pieces = torch.split(tensor, list(parts.values()))
        for part, piece in zip(parts, pieces, strict=True):
            key = name.replace(packed, part)
            require(key not in tensors, f"two tensors stand for {key}, one of them is {name}")
            tensors[key] = piece.contiguous()


def settle_further_norms(tensors: dict[str, Tensor]) -> None:
    """Name the input norm of layers behind the first ``input_layernorm``.

    SGLang calls it ``hidden_norm``. Raises ``CheckpointError`` where both are there and differ.
    """
    for name in [n for n in tensors if _FURTHER_NORM.fullmatch(n)]:
        usual = name.replace("hidden_norm", "input_layernorm")
        norm = tensors.pop(name)
        require(
            usual not in tensors or tensors[usual].equal(norm),
            f"{usual} and {name} differ, and SGLang reads one where vLLM reads the other: remove "
            "the one that was not trained",
        )
        tensors[usual] = norm


def to_specforge(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names for SGLang and vLLM: both of `settle_further_norms` in layers behind the first."""
    written = dict(tensors)
    for name in tensors:
        if re.fullmatch(r"layers\.\d+\.input_layernorm\.weight", name):
            written[name.replace("input_layernorm", "hidden_norm")] = tensors[name].clone()
    return written


def to_speculators(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names for the speculators library."""
    return {
        "layers.0." + name.removeprefix("midlayer.") if name.startswith("midlayer.") else name: t
        for name, t in tensors.items()
    }


def hint(name: str, config: DrafterConfig) -> str:
    """What to put into config.json so that a tensor has a meaning; empty where nothing would."""
    toggles = {
        "fc_norm.": ("fc_norm", config.fc_norm),
        "input_norm.": ("norm_before_fc", config.norm_before_fc),
    }
    for start, (toggle, on) in toggles.items():
        if name.startswith(start) and not on:
            return f"add {toggle}: true"
    if name.endswith("_proj.bias") and not config.attention_bias:
        return "add attention_bias: true"
    if name.endswith(("q_norm.weight", "k_norm.weight")) and not config.qk_norm:
        return "add model_type: qwen3"
    if name.startswith("layers."):
        return "raise num_hidden_layers"
    return ""


def shape_hint(name: str, shape: Sequence[int], config: DrafterConfig) -> str:
    """What to put into config.json so that a tensor's shape fits; empty where nothing would."""
    if len(shape) != 2:
        return ""
    rows, columns = shape
    captured = len(config.aux_layers)
    if name.endswith("self_attn.q_proj.weight") and rows % config.num_attention_heads == 0:
        return f"set head_dim: {rows // config.num_attention_heads}"
    if name == "fc.weight" and rows == config.hidden_size:
        states = columns // config.target_hidden_size
        ways = [] if columns % captured else [f"set target_hidden_size: {columns // captured}"]
        if columns % config.target_hidden_size == 0:
            ways.append(f"name {states} aux layers in place of {captured}")
        return " or ".join(ways)
    if name == "lm_head.weight" and columns == config.hidden_size:
        return f"set draft_vocab_size: {rows}"
    return ""
