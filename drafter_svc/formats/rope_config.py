"""Rotary positions in config files: base and scaling, in the three spellings that writers use."""

from collections.abc import Mapping
from typing import Any

from drafter_svc.formats.json_section import Section
from drafter_svc.model.config import require

# Where nothing says otherwise, every reader of these formats takes this base.
_THETA = 10000.0
_WITHIN = "original_max_position_embeddings"
# Positions of image, height and width (Qwen-VL): those of text are equal, which is plain RoPE.
_MULTIMODAL = ("mrope_section", "mrope_interleaved")
# Factors whose zero stands for "none" wherever they are read.
_OPTIONAL_FACTORS = ("mscale", "mscale_all_dim")

#: Keys that `read_rope` takes.
ROPE_KEYS = frozenset({"rope_theta", "rope_scaling", "rope_parameters", _WITHIN})


def read_rope(section: Section) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling`` as ``DrafterConfig`` has them.

    The base may stand alone or with the scaling, which is ``rope_scaling`` or, in transformers 5,
    ``rope_parameters``. Raises ``CheckpointError`` where they contradict each other.
    """
    thetas = {"rope_theta": section.optional("rope_theta", float)}
    scalings: dict[str, dict[str, Any]] = {}
    within = section.optional(_WITHIN, int)
    for name in ("rope_scaling", "rope_parameters"):
        values = section.optional(name, dict)
        if values is not None:
            inner = Section(values, f"{section.name}: {name}")
            inner.fixed({"partial_rotary_factor": 1.0})
            thetas[name] = inner.optional("rope_theta", float)
            scalings[name] = _scaling(inner, within)
    theta = _one(section.name, thetas)
    return {
        "rope_theta": _THETA if theta is None else theta,
        "rope_scaling": _one(section.name, scalings) or None,
    }


def _scaling(inner: Section, within: int | None) -> dict[str, Any]:
    """One scaling with its kind under ``rope_type``; empty where it scales nothing."""
    inner.drop(_MULTIMODAL)
    kinds = {
        name: "default" if kind == "mrope" else kind
        for name in ("rope_type", "type")
        if (kind := inner.optional(name, str)) is not None
    }
    kind = _one(inner.name, kinds) or "default"
    rest = {
        key: value
        for key, value in inner.rest().items()
        if not (key in _OPTIONAL_FACTORS and value == 0)
    }
    if kind == "default":
        require(
            not rest,
            f"{inner.name} has no rope_type but {', '.join(sorted(rest))}"
            if not kinds
            else f"{inner.name}: {next(iter(kinds))} is 'default', which takes no "
            f"{', '.join(sorted(rest))}",
        )
        return {}
    if within is not None and kind != "linear":
        rest.setdefault(_WITHIN, within)
    return {"rope_type": kind, **rest}


def _one(where: str, found: Mapping[str, Any]) -> Any:
    """The value that all of ``found`` have; None where there is none."""
    said = {name: value for name, value in found.items() if value is not None}
    values = list(said.values())
    require(
        all(value == values[0] for value in values),
        f"{where}: {' and '.join(said)} contradict each other",
    )
    return values[0] if values else None
