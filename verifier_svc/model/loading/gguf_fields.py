"""What a GGUF file says of its model beyond what transformers reads from it."""

from __future__ import annotations

import math
from typing import Any

from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

from verifier_svc.model.loading.gguf_file import check_fields

# Fields that change what is computed, by the name that configurations have for them, if any.
_TOLD = {
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "logit_scale": "logit_scale",
    **dict.fromkeys(
        (
            "attention.causal",
            "attention.clamp_kqv",
            "attention.max_alibi_bias",
            "attention.scale",
            "attention.temperature_length",
            "embedding_scale",
            "expert_count",
            "expert_gating_func",
            "expert_group_count",
            "expert_shared_count",
            "expert_weights_norm",
            "expert_weights_scale",
            "leading_dense_block_count",
            "residual_scale",
            "swiglu_clamp_exp",
        )
    ),
}
_SCALING = "rope.scaling."
# Parts of `rope.scaling` that are read, or say nothing of the computation.
_SCALED_BY = {
    "type", "factor", "original_context_length", "attn_factor", "finetuned", "yarn_beta_fast",
    "yarn_beta_slow",
}  # fmt: skip
_FACTORS = ("rope_factors_short.weight", "rope_factors_long.weight")
_FREQUENCIES = "rope_freqs.weight"


def scaled(config: Any, reader: Any) -> Any:
    """The configuration that transformers reads from a file, with RoPE as the file scales it.

    `reader` is the file's GGUFReader.

    Raises:
        ValueError: the file does not say what is needed, or what neither transformers nor this
            reads.
    """
    check_fields(reader)
    architecture = str(reader.fields["general.architecture"].contents())
    fields = {
        name.removeprefix(f"{architecture}."): field.contents()
        for name, field in reader.fields.items()
        if name.startswith(f"{architecture}.")
    }
    factors = {
        tensor.name: [float(each) for each in tensor.data.flatten()]
        for tensor in reader.tensors
        if tensor.name in (*_FACTORS, _FREQUENCIES)
    }
    mapping = GGUF_CONFIG_MAPPING.get(config.model_type.removesuffix("_text"), {})
    for name, value in fields.items():
        if name in _TOLD and name not in mapping:
            _tell(config, name, value)
    rope = _rope(config, fields, factors)
    if rope:
        if "rope_theta" not in config.rope_parameters:
            raise ValueError("the file scales RoPE, which its layers turn in different ways")
        config.rope_parameters = {**config.rope_parameters, **rope}
    return config


def _tell(config: Any, name: str, value: Any) -> None:
    """Check that the configuration says the same, or let it, where one value is for all layers."""
    key = _TOLD[name]
    if not value or (name == "attention.causal" and value is True):
        return
    told = getattr(config, key, None) if key else None
    if key == "head_dim" and told is None:
        told = config.hidden_size // config.num_attention_heads
    if told == value:
        return
    if key == "sliding_window" and value >= config.max_position_embeddings:
        return
    if key is None or not hasattr(config, key) or getattr(config, "layer_types", None):
        raise ValueError(f"the GGUF field {name} ({value}) is not read by transformers")
    setattr(config, key, value)


def _rope(config: Any, fields: dict[str, Any], factors: dict[str, list[float]]) -> dict[str, Any]:
    """RoPE's parameters that differ from those of plain RoPE over whole heads."""
    scaling = {
        name.removeprefix(_SCALING): value
        for name, value in fields.items()
        if name.startswith(_SCALING)
    }
    if unknown := sorted(set(scaling) - _SCALED_BY):
        raise ValueError(f"the GGUF field {_SCALING}{unknown[0]} is not read")
    kind, scale = scaling.get("type") or "none", float(scaling.get("factor") or 1.0)
    original = scaling.get("original_context_length") or config.max_position_embeddings
    attention = float(scaling.get("attn_factor") or 1.0)
    rope = _partial(config, fields.get("rope.dimension_count"))
    if _FREQUENCIES in factors and set(factors[_FREQUENCIES]) != {1.0}:
        if kind != "none":
            raise ValueError(f"the file has {_FREQUENCIES} and rope.scaling.type {kind} at once")
        # Factors of any making, Llama 3's among them, the same for every length.
        pair = (factors[_FREQUENCIES],) * 2
        return rope | _by_length(pair, config.max_position_embeddings, attention)
    if all(name in factors for name in _FACTORS):
        return rope | _by_length([factors[name] for name in _FACTORS], original, attention)
    if kind == "none" or (kind == "linear" and scale == 1.0):
        return rope
    if kind == "linear":
        return rope | {"rope_type": "linear", "factor": scale}
    if kind != "yarn":
        raise ValueError(f"rope.scaling.type {kind} of the GGUF file is not read")
    betas = {name: scaling.get(f"yarn_{name}") for name in ("beta_fast", "beta_slow")}
    return rope | {
        "rope_type": "yarn",
        "factor": scale,
        "original_max_position_embeddings": int(original),
        "attention_factor": attention * (1.0 + 0.1 * math.log(scale) if scale > 1 else 1.0),
        **{name: float(value) for name, value in betas.items() if value},
    }


def _by_length(pair: Any, original: int, attention: float) -> dict[str, Any]:
    """Factors of frequencies for sequences up to an original length, and for longer ones."""
    return {
        "rope_type": "longrope",
        "short_factor": pair[0],
        "long_factor": pair[1],
        "factor": 1.0,
        "attention_factor": attention,
        "original_max_position_embeddings": int(original),
    }


def _partial(config: Any, turned: int | None) -> dict[str, Any]:
    """RoPE over a part of each head, where the configuration does not say so already."""
    width = getattr(config, "head_dim", None)
    width = width or config.hidden_size // config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or {}
    told = int(width * rope.get("partial_rotary_factor", 1.0))
    return {} if turned in (None, told) else {"partial_rotary_factor": turned / width}
