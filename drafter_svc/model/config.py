"""The drafter's configuration, whatever format it was read from (``drafter_svc.formats``)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from drafter_svc.model.rope import SCALINGS

INT_FIELDS = (
    "hidden_size",
    "target_hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "vocab_size",
    "draft_vocab_size",
)
# More than any drafter has; tensors of such shapes are still counted in 64 bits.
MOST_LAYERS, MOST = 256, 1 << 24
FLOAT_FIELDS = ("rms_norm_eps", "rope_theta")


class CheckpointError(ValueError):
    """A drafter checkpoint that cannot be used; the message is one sentence for the operator."""


@dataclass(frozen=True, slots=True)
class DrafterConfig:
    """Shapes and switches of an EAGLE-3 or EAGLE-3.1 drafter.

    ``aux_layers`` are in the *input to layer* convention: index ``i`` names the state that enters
    layer ``i`` of the target, which is the output of layer ``i - 1``; ``i`` = its number of layers
    names the last state before the final norm. ``vocab_size`` is the target's.
    ``draft_temperature`` (t_d) divides the draft logits when the drafter samples: a drafter is
    flatter than its target. ``training`` records how the weights were made.

    Normalizations: ``fc_norm`` is one RMSNorm per captured state and ``norm_before_fc`` one over
    all of them side by side; ``norm_output`` recycles the state after the final norm;
    ``norm_before_residual`` lets the normed state enter the residual stream; ``qk_norm`` norms
    queries and keys per head, as Qwen3 does. ``attention_bias`` is a bias on all four projections.
    ``sliding_window`` is the number of keys that a query sees, its own included; None is all.
    ``rope_scaling`` has ``rope_type`` linear, llama3 or yarn with its parameters.
    ``own_embeddings``: the drafter brings its embeddings instead of reading its target's, and
    ``own_head`` its output layer, without which all of the target's tokens are draft tokens.
    ``mtp_head``: the form of a multi-token-prediction head (DeepSeek-V3) instead of EAGLE-3's. The
    one captured state, or the recycled one, is projected together with the embedding to what a
    plain layer reads; there is no ``fc``.

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
    num_hidden_layers: int = 1
    norm_before_fc: bool = False
    qk_norm: bool = False
    attention_bias: bool = False
    sliding_window: int | None = None
    rope_scaling: Mapping[str, Any] | None = None
    own_embeddings: bool = False
    own_head: bool = True
    mtp_head: bool = False

    def __post_init__(self) -> None:
        self._check_numbers()
        require(
            self.hidden_size == self.target_hidden_size or self.own_embeddings,
            f"hidden_size is {self.hidden_size} but target_hidden_size is "
            f"{self.target_hidden_size}: a drafter that reads the target's embeddings must be as "
            "wide as the target, so add the drafter's own embed_tokens.weight",
        )
        require(
            self.own_head
            or (self.hidden_size, self.draft_vocab_size)
            == (self.target_hidden_size, self.vocab_size),
            "a drafter that borrows the target's head must be as wide as the target and draft all "
            "of its tokens, so add the drafter's own lm_head.weight",
        )
        require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"num_attention_heads {self.num_attention_heads} is not a multiple of "
            f"num_key_value_heads {self.num_key_value_heads}",
        )
        require(self.head_dim % 2 == 0, f"head_dim {self.head_dim} must be even for RoPE")
        require(
            self.draft_vocab_size <= self.vocab_size,
            f"draft_vocab_size {self.draft_vocab_size} exceeds vocab_size {self.vocab_size}",
        )
        require(
            not (self.fc_norm and self.norm_before_fc),
            "fc_norm and norm_before_fc are both true, one norm of the captured states is enough",
        )
        ascending = list(self.aux_layers) == sorted(set(self.aux_layers))
        require(
            bool(self.aux_layers) and ascending and self.aux_layers[0] >= 0,
            "eagle_aux_hidden_state_layer_ids must be strictly ascending and not negative, got "
            f"{list(self.aux_layers)}",
        )
        if self.rope_scaling is not None:
            _check_scaling(self.rope_scaling)
        if self.mtp_head:
            self._check_mtp_head()
        chances = self.expected_acceptance
        require(
            all(type(chance) in (int, float) and 0 <= chance <= 1 for chance in chances),
            f"overlap_per_step must be numbers between 0 and 1, got {list(chances)}",
        )

    @property
    def expected_acceptance(self) -> tuple[float, ...]:
        """Chance of each chain step on held-out text if all before it were accepted; may be empty.

        The trainer writes it: the mean of sum min(p, q) at temperature 1, teacher-forced.
        """
        held_out = self.training.get("held_out")
        steps = held_out.get("overlap_per_step") if isinstance(held_out, Mapping) else None
        return tuple(steps) if isinstance(steps, Sequence) else ()

    def _check_mtp_head(self) -> None:
        require(
            len(self.aux_layers) == 1 and self.hidden_size == self.target_hidden_size,
            "an MTP head reads one captured state of its own width, got aux layers "
            f"{list(self.aux_layers)} of width {self.target_hidden_size} for {self.hidden_size}",
        )
        for name in ("norm_before_fc", "norm_before_residual"):
            require(not getattr(self, name), f"{name} is true, which an MTP head has no place for")

    def _check_numbers(self) -> None:
        for name in INT_FIELDS:
            value, most = getattr(self, name), MOST_LAYERS if name == "num_hidden_layers" else MOST
            require(value >= 1, f"{name} must be at least 1")
            require(value <= most, f"{name} must be at most {most}")
        for name in (*FLOAT_FIELDS, "draft_temperature"):
            value = getattr(self, name)
            require(math.isfinite(value) and value > 0, f"{name} must be positive and finite")
        require(
            self.sliding_window is None or self.sliding_window >= 1,
            "sliding_window must be at least 1",
        )


def _check_scaling(scaling: Mapping[str, Any]) -> None:
    kind = scaling.get("rope_type")
    require(
        kind in SCALINGS,
        f"rope_scaling: rope_type is {kind!r}, this drafter computes {', '.join(SCALINGS)} only",
    )
    known = SCALINGS[str(kind)]
    unknown = ", ".join(sorted(scaling.keys() - known - {"rope_type"}))
    require(not unknown, f"rope_scaling: {kind} does not take {unknown}")
    needed = known if kind == "llama3" else {"factor"}
    missing = ", ".join(sorted(needed - scaling.keys()))
    require(not missing, f"rope_scaling: {kind} has no {missing}")
    for name, value in scaling.items():
        numeric = type(value) in (int, float) and math.isfinite(value)
        if name not in ("rope_type", "truncate") and value is not None:
            require(numeric and value > 0, f"rope_scaling: {name} must be a positive number")


def require(condition: bool, sentence: str) -> None:
    """Raise ``CheckpointError`` with the sentence unless the condition holds."""
    if not condition:
        raise CheckpointError(sentence)
