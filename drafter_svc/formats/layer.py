"""Shapes of the decoder layers: the keys that all formats share with transformers' configs."""

from collections.abc import Mapping
from typing import Any

from drafter_svc.config import DrafterConfig, require
from drafter_svc.formats.section import Section

#: Kinds of decoder layer: whether queries and keys are normed per head.
_MODEL_TYPES = {"llama": False, "qwen2": False, "qwen3": True}
_INTS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "max_position_embeddings",
    "vocab_size",
)
_FIXED = {"hidden_act": "silu", "mlp_bias": False, "partial_rotary_factor": 1.0, "logit_scale": 1.0}
# Where nothing says otherwise, every reader of these formats takes this base.
_ROPE_THETA = 10000.0
#: Keys that other writers add and that change nothing in the forward pass.
IGNORED = frozenset(
    {
        "_name_or_path", "architectures", "attention_dropout", "bos_token_id",
        "chunk_size_feed_forward", "dtype", "eos_token_id", "id2label", "initializer_range",
        "is_decoder", "is_encoder_decoder", "label2id", "max_window_layers", "output_attentions",
        "output_hidden_states", "pad_token_id", "pretraining_tp", "problem_type", "return_dict",
        "torch_dtype", "transformers_version", "use_cache",
    }
)  # fmt: skip
#: Keys that `read_layers` takes.
KNOWN = frozenset(
    {
        "attention_bias", "head_dim", "layer_types", "model_type", "num_hidden_layers",
        "num_key_value_heads", "qkv_bias", "rms_norm_eps", "rope_parameters", "rope_scaling",
        "rope_theta", "sliding_window", "tie_word_embeddings", "use_sliding_window",
        *_INTS, *_FIXED,
    }
)  # fmt: skip


def read_layers(section: Section) -> dict[str, Any]:
    """Take the keys of transformers' Llama, Qwen2 and Qwen3 configs.

    Returns values of ``DrafterConfig`` by name. ``output_bias`` is added to them: False where the
    attention's bias is not on its output projection.
    """
    model_type = section.default("model_type", str, "llama")
    require(
        model_type in _MODEL_TYPES,
        f"{section.name}: model_type is {model_type!r}, this drafter computes layers of "
        f"{', '.join(_MODEL_TYPES)} only",
    )
    section.fixed(_FIXED)
    values: dict[str, Any] = {name: section.take(name, int) for name in _INTS}
    values["rms_norm_eps"] = section.take("rms_norm_eps", float)
    heads = values["num_attention_heads"]
    require(heads >= 1, "num_attention_heads must be at least 1")  # it divides, below
    values["num_hidden_layers"] = section.default("num_hidden_layers", int, 1)
    values["num_key_value_heads"] = section.default("num_key_value_heads", int, heads)
    values["head_dim"] = section.default("head_dim", int, values["hidden_size"] // heads)
    values["qk_norm"] = _MODEL_TYPES[model_type]
    bias = section.default("attention_bias", bool, False)
    values["attention_bias"] = section.default("qkv_bias", bool, False) or bias
    values["output_bias"] = bias
    values |= _rope(section)
    values["sliding_window"] = _window(section, values["num_hidden_layers"])
    return values


def write_layers(config: DrafterConfig) -> dict[str, Any]:
    """The keys of transformers' configs that say the same; defaults are written out."""
    written: dict[str, Any] = {
        "model_type": "qwen3" if config.qk_norm else "llama",
        "num_hidden_layers": config.num_hidden_layers,
        "hidden_act": "silu",
        "attention_bias": config.attention_bias,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "rope_scaling": None if config.rope_scaling is None else dict(config.rope_scaling),
    }
    for name in (*_INTS, "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta"):
        written[name] = getattr(config, name)
    if config.sliding_window is not None:
        written["sliding_window"] = config.sliding_window
        written["use_sliding_window"] = True
        written["layer_types"] = ["sliding_attention"] * config.num_hidden_layers
    return written


def _rope(section: Section) -> dict[str, Any]:
    """Both spellings: ``rope_theta`` beside ``rope_scaling``, or all in ``rope_parameters``."""
    theta = section.optional("rope_theta", float)
    scaling: Mapping[str, Any] = section.default("rope_scaling", dict, {})
    parameters = section.optional("rope_parameters", dict)
    if parameters is not None:
        inner = Section(parameters, f"{section.name}: rope_parameters")
        inner.fixed({"partial_rotary_factor": 1.0})
        base = inner.optional("rope_theta", float)
        require(
            theta is None or base is None or theta == base,
            f"{section.name}: rope_theta and rope_parameters contradict each other",
        )
        theta = theta if base is None else base
        rest = {k: v for k, v in parameters.items() if k in inner}
        require(
            not scaling or _kind(scaling) == _kind(rest),
            f"{section.name}: rope_scaling and rope_parameters contradict each other",
        )
        scaling = rest
    scaling = _kind(scaling)
    plain = scaling.get("rope_type") in (None, "default") and not scaling.keys() - {"rope_type"}
    return {
        "rope_theta": _ROPE_THETA if theta is None else theta,
        "rope_scaling": None if plain else scaling,
    }


def _kind(scaling: Mapping[str, Any]) -> dict[str, Any]:
    """The scaling with its kind under ``rope_type``; older configs say ``type``."""
    values = {k: v for k, v in scaling.items() if v is not None}
    if "type" in values:
        values.setdefault("rope_type", values["type"])
        del values["type"]
    return values


def _window(section: Section, layers: int) -> int | None:
    window = section.optional("sliding_window", int)
    used = section.optional("use_sliding_window", bool)
    types = section.optional("layer_types", list)
    if types is None:
        require(
            window is None or used is False,
            f"{section.name}: sliding_window is {window} but nothing says which layers use it; "
            "add layer_types",
        )
        return None
    require(
        len(types) == layers and set(types) <= {"full_attention", "sliding_attention"},
        f"{section.name}: layer_types must name full_attention or sliding_attention for each of "
        f"{layers} layers, got {types!r}",
    )
    if "sliding_attention" not in types:
        return None
    require(
        len(set(types)) == 1,
        f"{section.name}: layer_types mixes full and sliding attention, this drafter computes one "
        "window for all layers",
    )
    require(
        window is not None and used is not False,
        f"{section.name}: layer_types has sliding_attention but no sliding_window is set",
    )
    return window
