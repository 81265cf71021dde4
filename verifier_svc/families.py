"""Families of models that cannot be served, and why, as far as a configuration tells."""

from __future__ import annotations

from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

# Layer types whose state is more than keys and values, so that no length rolls it back.
_RECURRENT = ("linear", "mamba", "recurrent", "conv", "rwkv", "lstm", "hybrid", "gdn", "kda")
# Models beside the decoder of text.
_OTHER_MODELS = ("vision_config", "audio_config", "patcher_config")
# What a configuration has only where layers keep compressed keys and values.
_LATENT = ("kv_lora_rank",)
# ... and where rows choose the keys that they attend to.
_SPARSE = ("index_topk", "index_n_heads", "sparse_attention_config", "block_sparse")


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
    return None


def positions_of(config: Any) -> int:
    """Positions of a sequence at most; 0 where the configuration says nothing of them.

    Factors by length (longrope) would change for a whole sequence once it is longer than the
    model's original length: those of such a length are served.
    """
    most: int = getattr(config, "max_position_embeddings", None) or 0
    for rope in _ropes(getattr(config, "rope_parameters", None) or {}):
        if rope.get("rope_type") == "longrope":
            most = min(most, rope.get("original_max_position_embeddings") or most)
    return most


def _ropes(parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """RoPE's parameters, of all layers or by their type."""
    nested = [each for each in parameters.values() if isinstance(each, dict)]
    return nested or [parameters]
