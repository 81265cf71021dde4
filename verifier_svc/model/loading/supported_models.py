"""Families of models that cannot be served, and why, as far as a configuration tells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.activations import ACT2FN
from transformers.integrations.heterogeneity.configuration_utils import (
    AmbiguousGlobalPerLayerAttributeError,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

# Layer types whose state is more than keys and values, so that no length rolls it back.
_RECURRENT = ("linear", "mamba", "recurrent", "conv", "rwkv", "lstm", "hybrid", "gdn", "kda")
# Models beside the decoder of text.
_OTHER_MODELS = ("vision_config", "audio_config", "patcher_config")
# What a configuration has only where layers keep compressed keys and values.
_LATENT = ("kv_lora_rank",)
# ... and where rows choose the keys that they attend to.
_SPARSE = ("index_topk", "index_n_heads", "sparse_attention_config", "block_sparse")
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")
# More than any model has: of each layer and position something is built before any text is seen.
_MOST_LAYERS, _MOST_POSITIONS = 1024, 1 << 20


def why_not(config: Any) -> str | None:
    """Why a model of this configuration cannot be served; None where nothing speaks against it."""
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        return f"{kind} is an encoder with a decoder; a decoder alone can be served"
    try:
        text = config.get_text_config()
    except ValueError:  # there are several
        text = None
    if text is not config or any(name in config.sub_configs for name in _OTHER_MODELS):
        return f"{kind} is made of several models; a decoder of text alone can be served"
    if any(name in kind for name in ("lstm", "mamba", "rwkv")):
        return f"{kind} keeps a recurrent state, which cannot be rolled back"
    for each in dict.fromkeys(map(str, getattr(text, "layer_types", None) or ())):
        if any(name in each for name in _RECURRENT):
            return f"layers of type {each} keep a recurrent state, which cannot be rolled back"
    if any(getattr(text, name, None) for name in _SPARSE):
        return f"{kind} has sparse attention, whose rows choose their keys"
    if any(getattr(text, name, None) for name in _LATENT):
        return f"{kind} has multi-head latent attention (MLA), which is not served"
    model = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if model is not None and not model._can_set_attn_implementation():
        return f"{model.__name__} does not attend through transformers' attention interface"
    if positions_of(text) < 1:
        return f"the configuration of {kind} has no max_position_embeddings"
    return next(_impossible(text), None)


def _impossible(config: Any) -> Iterator[str]:
    """What a configuration asks for that no model computes, in sentences that name the setting."""
    layers = _one(config, "num_hidden_layers")
    if isinstance(layers, int) and not 1 <= layers <= _MOST_LAYERS:
        yield f"num_hidden_layers is {layers}; between 1 and {_MOST_LAYERS} can be served"
    heads, kv_heads = _one(config, "num_attention_heads"), _one(config, "num_key_value_heads")
    if isinstance(heads, int) and isinstance(kv_heads, int) and (kv_heads < 1 or heads % kv_heads):
        yield f"num_attention_heads is {heads}, no multiple of num_key_value_heads ({kv_heads})"
    for name in _ACTIVATIONS:
        value = _one(config, name)
        if isinstance(value, str) and value not in ACT2FN:
            yield f"{name} is {value!r}, which transformers does not know"
    for rope in _ropes(getattr(config, "rope_parameters", None) or {}):
        kind, theta = rope.get("rope_type"), rope.get("rope_theta")
        if kind not in (None, "default", *ROPE_INIT_FUNCTIONS):
            yield f"rope_type is {kind!r}, which transformers does not know"
        if isinstance(theta, int | float) and not 0 < theta < float("inf"):
            yield f"rope_theta is {theta}; it must be positive"
        width = _one(config, "head_dim")
        whole = theta and rope.get("partial_rotary_factor") is None
        if whole and isinstance(width, int) and (width < 2 or width % 2):
            yield f"head_dim is {width}; RoPE turns pairs of elements, so it must be even"


def _one(config: Any, name: str) -> Any:
    """What a configuration says for all layers; None where it says nothing, or several things."""
    try:
        return getattr(config, name, None)
    except AmbiguousGlobalPerLayerAttributeError:
        return None


def positions_of(config: Any) -> int:
    """Positions of a sequence at most; 0 where the configuration says nothing of them.

    Tables of RoPE and what rows see are built by position, so that there is a limit to them.
    Factors by length (longrope) would change for a whole sequence once it is longer than the
    model's original length: those of such a length are served.
    """
    most = min(getattr(config, "max_position_embeddings", None) or 0, _MOST_POSITIONS)
    for rope in _ropes(getattr(config, "rope_parameters", None) or {}):
        if rope.get("rope_type") == "longrope":
            most = min(most, rope.get("original_max_position_embeddings") or most)
    return most


def _ropes(parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """RoPE's parameters, of all layers or by their type."""
    nested = [each for each in parameters.values() if isinstance(each, dict)]
    return nested or [parameters]
