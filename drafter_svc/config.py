"""The drafter's configuration and its flat ``config.json`` (the layout of SpecForge and SGLang)."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

ARCHITECTURE = "LlamaForCausalLMEagle3"

_INT_FIELDS = (
    "hidden_size",
    "target_hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "vocab_size",
    "draft_vocab_size",
)
_FLOAT_FIELDS = ("rms_norm_eps", "rope_theta")
_BOOL_FIELDS = ("fc_norm", "norm_output", "norm_before_residual")
_KINDS: dict[type, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    dict: "an object",
    list: "a list",
}
_AUX_LAYERS = "eagle_aux_hidden_state_layer_ids"

# Keys that describe the architecture by a value this drafter has only one of. They may be left
# out; any other value means that the checkpoint computes something else.
_FIXED: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 1,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "rope_scaling": None,
    "norm_before_fc": False,
}
# Keys that other writers add and that change nothing in the forward pass.
_IGNORED = frozenset(
    {
        "attention_dropout",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "initializer_range",
        "pad_token_id",
        "pretraining_tp",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)

T = TypeVar("T")


class CheckpointError(ValueError):
    """A drafter checkpoint that cannot be used; the message is one sentence for the operator."""


@dataclass(frozen=True, slots=True)
class DrafterConfig:
    """Shapes and switches of an EAGLE-3.1 drafter with one decoder layer.

    ``aux_layers`` are in the *input to layer* convention: index ``i`` names ``hidden_states[i]``
    of the target, which is the output of its layer ``i - 1``. ``vocab_size`` is the target's.
    ``draft_temperature`` (t_d) divides the draft logits when the drafter samples: a drafter is
    flatter than its target. ``training`` records how the weights were made.

    Raises ``CheckpointError`` on values that contradict each other.
    """

    hidden_size: int
    target_hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    vocab_size: int
    draft_vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    fc_norm: bool
    norm_output: bool
    norm_before_residual: bool
    aux_layers: tuple[int, ...]
    target_fingerprint: str
    draft_temperature: float = 1.0
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _INT_FIELDS:
            _require(getattr(self, name) >= 1, f"{name} must be at least 1")
        for name in (*_FLOAT_FIELDS, "draft_temperature"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value > 0, f"{name} must be positive and finite")
        _require(
            self.hidden_size == self.target_hidden_size,
            f"hidden_size is {self.hidden_size} but target_hidden_size is "
            f"{self.target_hidden_size}: the drafter reads the target's embeddings, so the widths "
            "must be equal",
        )
        _require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"num_attention_heads {self.num_attention_heads} is not a multiple of "
            f"num_key_value_heads {self.num_key_value_heads}",
        )
        _require(self.head_dim % 2 == 0, f"head_dim {self.head_dim} must be even for RoPE")
        _require(
            self.draft_vocab_size <= self.vocab_size,
            f"draft_vocab_size {self.draft_vocab_size} exceeds vocab_size {self.vocab_size}",
        )
        ascending = list(self.aux_layers) == sorted(set(self.aux_layers))
        _require(
            bool(self.aux_layers) and ascending and self.aux_layers[0] >= 0,
            f"{_AUX_LAYERS} must be strictly ascending and not negative, got "
            f"{list(self.aux_layers)}",
        )

    def to_json(self) -> str:
        """The text of ``config.json``."""
        flat: dict[str, Any] = {"architectures": [ARCHITECTURE], **_FIXED}
        for name in (*_INT_FIELDS, *_FLOAT_FIELDS, *_BOOL_FIELDS):
            flat[name] = getattr(self, name)
        flat["torch_dtype"] = "bfloat16"
        flat["eagle_config"] = {"use_aux_hidden_state": True, _AUX_LAYERS: list(self.aux_layers)}
        flat["holdcourse"] = {
            "target_fingerprint": self.target_fingerprint,
            "draft_temperature": self.draft_temperature,
            "training": dict(self.training),
        }
        return json.dumps(flat, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "DrafterConfig":
        """Read ``config.json``.

        Raises ``CheckpointError`` for text that is not a JSON object and for any key that is
        missing, unknown, of the wrong type, or at odds with this architecture.
        """
        flat = _Section(_parse(text), "config.json")
        _check_fixed(flat)
        values: dict[str, Any] = {name: flat.take(name, int) for name in _INT_FIELDS}
        values |= {name: flat.take(name, float) for name in _FLOAT_FIELDS}
        values |= {name: flat.take(name, bool) for name in _BOOL_FIELDS}

        eagle = _Section(flat.take("eagle_config", dict), "eagle_config")
        _require(
            eagle.take("use_aux_hidden_state", bool),
            "eagle_config.use_aux_hidden_state must be true",
        )
        layers = eagle.take(_AUX_LAYERS, list)
        _require(
            all(type(layer) is int for layer in layers),
            f"eagle_config: {_AUX_LAYERS} must hold integers, got {layers!r}",
        )
        values["aux_layers"] = tuple(layers)
        eagle.finish()

        own = _Section(flat.take("holdcourse", dict), "holdcourse")
        values["target_fingerprint"] = own.take("target_fingerprint", str)
        values["draft_temperature"] = own.take("draft_temperature", float)
        values["training"] = own.take("training", dict)
        own.finish()
        flat.finish()
        return cls(**values)


class _Section:
    """One JSON object whose keys must all be taken."""

    def __init__(self, values: Mapping[str, Any], name: str) -> None:
        self._values = dict(values)
        self._name = name

    def take(self, key: str, kind: type[T]) -> T:
        """A required value; an integer is taken for a float, true is not taken for 1."""
        _require(key in self._values, f"{self._name} has no {key}")
        value = self._values.pop(key)
        if kind is float and type(value) is int:
            value = float(value)
        _require(type(value) is kind, f"{self._name}: {key} must be {_KINDS[kind]}, got {value!r}")
        return value  # type: ignore[no-any-return]

    def pop(self, key: str, default: Any) -> Any:
        return self._values.pop(key, default)

    def finish(self) -> None:
        unknown = ", ".join(sorted(self._values))
        _require(not unknown, f"{self._name} has keys that this drafter does not know: {unknown}")


def _check_fixed(flat: _Section) -> None:
    architectures = flat.take("architectures", list)
    _require(
        architectures == [ARCHITECTURE],
        f'config.json: architectures must be ["{ARCHITECTURE}"], got {architectures!r}',
    )
    for key, expected in _FIXED.items():
        value = flat.pop(key, expected)
        _require(
            value == expected,
            f"config.json: {key} is {value!r}, this drafter computes {expected!r} only",
        )
    for key in _IGNORED:
        flat.pop(key, None)


def _parse(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointError(f"config.json is not valid JSON: {error}") from None
    _require(isinstance(value, dict), "config.json must hold one JSON object")
    return value  # type: ignore[no-any-return]


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise CheckpointError(sentence)
