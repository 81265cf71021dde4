"""What a checkpoint says of itself, and what its user adds where it is silent."""

from dataclasses import dataclass, field
from typing import Any

from drafter_svc.model.config import CheckpointError, DrafterConfig, require

#: How aux layer ids are meant: the state that enters a layer, the one that leaves it, or the
#: boundary between layers, which may also name the last state before the final norm.
CONVENTIONS = ("input", "output", "boundary")
_CONVERT = ".venv/bin/python -m drafter_svc.formats convert PATH OUT --target TARGET"


@dataclass(frozen=True, slots=True)
class UserOverrides:
    """What the user knows; None leaves it to the checkpoint."""

    aux_layers: tuple[int, ...] | None = None
    aux_convention: str | None = None
    norm_before_residual: bool | None = None
    target_fingerprint: str | None = None
    draft_temperature: float | None = None


@dataclass(slots=True)
class DeclaredConfig:
    """What config files say. ``values`` are those of ``DrafterConfig`` that are certain.

    ``aux_layers`` are as written, in ``aux_convention`` where the format declares one. ``own``
    marks checkpoints that this project wrote, which leave nothing open. ``notes`` are sentences on
    what was taken in one of several ways.
    """

    values: dict[str, Any]
    aux_layers: tuple[int, ...] | None = None
    aux_convention: str | None = None
    norm_before_residual: bool | None = None
    target_fingerprint: str | None = None
    draft_temperature: float | None = None
    training: dict[str, Any] = field(default_factory=dict)
    output_bias: bool = False
    tied: bool = False
    own: bool = False
    notes: list[str] = field(default_factory=list)

    def config(self, given: UserOverrides, *, fingerprint_needed: bool = True) -> DrafterConfig:
        """All facts put together. Raises ``CheckpointError`` for what nobody says."""
        fingerprint = _one("target fingerprint", self.target_fingerprint, given.target_fingerprint)
        if fingerprint is None and fingerprint_needed:
            raise CheckpointError(
                "config.json does not name the target by fingerprint (no holdcourse section): "
                f"write one with `{_CONVERT}`"
            )
        before = _one("norm_before_residual", self.norm_before_residual, given.norm_before_residual)
        if before is None:
            raise CheckpointError(
                "config.json has no norm_before_residual, and its readers differ in what they "
                "take for it: add it, or pass --norm-before-residual (SafeAILab, SpecForge and "
                "SGLang compute false)"
            )
        temperatures = (given.draft_temperature, self.draft_temperature, 1.0)
        return DrafterConfig(
            **self.values,
            norm_before_residual=before,
            aux_layers=self._aux_layers(given),
            target_fingerprint=fingerprint or "",
            draft_temperature=next(t for t in temperatures if t is not None),
            training=self.training,
        )

    def _aux_layers(self, given: UserOverrides) -> tuple[int, ...]:
        layers = _one("aux layers", self.aux_layers, given.aux_layers)
        if layers is None:
            raise CheckpointError(
                "config.json has no eagle_aux_hidden_state_layer_ids: add them, or pass "
                "--aux-layers (the default of EAGLE-3 for a target of n layers is 2, n/2, n-3)"
            )
        convention = given.aux_convention or self.aux_convention
        require(
            not (self.own and given.aux_convention not in (None, "input")),
            "the checkpoint says itself that its aux layers are inputs to layers: leave out "
            "--aux-convention",
        )
        if convention is None and given.aux_layers is None:
            require(
                bool(layers) and layers[0] != 1,
                f"config.json: eagle_aux_hidden_state_layer_ids {list(layers)} are read in two "
                "ways (vLLM: input to layer, SGLang and SpecForge: output of layer): pass "
                "--aux-convention input or output",
            )
        return tuple(layer + 1 for layer in layers) if convention == "output" else layers


def _one(name: str, found: Any, given: Any) -> Any:
    require(
        found is None or given is None or found == given,
        f"the checkpoint's {name} is {_shown(found)} and not {_shown(given)}",
    )
    return given if found is None else found


def _shown(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
