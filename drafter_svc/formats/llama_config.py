"""Shapes of the decoder layers: the keys that all formats share with transformers' configs."""

from typing import Any

from drafter_svc.formats.json_section import Section
from drafter_svc.formats.refused_keys import FIXED, IGNORED
from drafter_svc.formats.rope_config import ROPE_KEYS, read_rope
from drafter_svc.model.config import DrafterConfig, require

# Kinds of decoder layer: whether queries and keys are normed per head. Those behind the first
# three are Llama's by another name, or the target's kind in a draft of Llama's layers, as
# SpecForge and NeMo Automodel copy it; experts and latent keys would show in the weights.
_MODEL_TYPES = {
    "llama": False,
    "qwen2": False,
    "qwen3": True,
    "mistral": False,
    "phi3": False,
    "qwen2_moe": False,
    "qwen3_moe": True,
    "kimi_k2": False,
}
_INTS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "max_position_embeddings",
    "vocab_size",
)
_WIDTHS = ("head_dim", "attention_head_dim")  # the latter is Hunyuan's
#: Keys that `read_layers` takes.
KNOWN = frozenset(
    {
        "attention_bias", "layer_types", "model_type", "num_hidden_layers", "num_key_value_heads",
        "qkv_bias", "rms_norm_eps", "sliding_window", "tie_word_embeddings",
        "use_sliding_window", *ROPE_KEYS, *_WIDTHS, *_INTS, *FIXED,
    }
)  # fmt: skip


def read_layers(section: Section, kind: str | None = None) -> dict[str, Any]:
    """Take the keys of transformers' Llama, Qwen2 and Qwen3 configs, and drop what says nothing.

    ``kind`` is the ``model_type`` where another key says it. Returns values of ``DrafterConfig``
    by name. ``output_bias`` is added to them: False where the attention's bias is not on its
    output projection.
    """
    model_type = section.default("model_type", str, "llama")
    require(
        model_type in _MODEL_TYPES,
        f"{section.name}: model_type is {model_type!r}, this drafter computes layers of "
        f"{', '.join(_MODEL_TYPES)} only",
    )
    section.fixed(FIXED)
    values: dict[str, Any] = {name: section.take(name, int) for name in _INTS}
    values["rms_norm_eps"] = section.take("rms_norm_eps", float)
    heads = values["num_attention_heads"]
    require(heads >= 1, "num_attention_heads must be at least 1")  # it divides, below
    values["num_hidden_layers"] = section.default("num_hidden_layers", int, 1)
    values["num_key_value_heads"] = section.default("num_key_value_heads", int, heads)
    head_dim = section.agreed(_WIDTHS, int)
    values["head_dim"] = values["hidden_size"] // heads if head_dim is None else head_dim
    values["qk_norm"] = _MODEL_TYPES[kind or model_type]
    bias = section.default("attention_bias", bool, False)
    values["attention_bias"] = section.default("qkv_bias", bool, False) or bias
    values["output_bias"] = bias
    values |= read_rope(section)
    values["sliding_window"] = _window(
        section, values["num_hidden_layers"], values["max_position_embeddings"]
    )
    section.drop(IGNORED)
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


def _window(section: Section, layers: int, positions: int) -> int | None:
    """The window of all layers; None where it hides none of the ``positions``."""
    window = section.optional("sliding_window", int)
    used = section.optional("use_sliding_window", bool)
    types = section.optional("layer_types", list)
    hides = window is None or window < positions
    if types is None:
        require(
            window is None or used is False or not hides,
            f"{section.name}: sliding_window is {window} but nothing says which layers use it; "
            "add layer_types",
        )
        return None
    require(
        len(types) >= layers
        and all(each in ("full_attention", "sliding_attention") for each in types),
        f"{section.name}: layer_types must name full_attention or sliding_attention for each of "
        f"{layers} layers, got {types!r}",
    )
    if "sliding_attention" not in types or not hides:
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
    require(
        len(types) == layers,
        f"{section.name}: layer_types names {len(types)} layers, as many as the target may have, "
        f"and nothing says whether the drafter's {layers} see a window",
    )
    return window
