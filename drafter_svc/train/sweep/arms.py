"""Training arms: a name, and the settings in which it differs from the others."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from drafter_svc.train.settings import TrainSettings

# Arms learn from the same lessons, for a number of tokens.
_SHARED = frozenset(
    {"target", "data", "out", "verifiers", "device", "epochs", "minutes", "batch_tokens"}
    | {"accumulate", "max_length", "feature_cache_gib", "held_out", "report_minutes", "seed"}
)


@dataclass(frozen=True, slots=True)
class TrainingArm:
    """``settings`` are the base with ``changes``, by name, as they were written."""

    name: str
    changes: dict[str, str]
    settings: TrainSettings


def parse_arms(texts: Sequence[str], base: TrainSettings) -> list[TrainingArm]:
    """Arms written as ``name`` or ``name: setting=value, setting=value``.

    Items of a list are separated by spaces. Raises ``ValueError`` with one sentence.
    """
    arms = [_parse(text, base) for text in texts]
    names = [arm.name for arm in arms]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"arms must have different names, got {', '.join(sorted(twice))} twice")
    return arms


def _parse(text: str, base: TrainSettings) -> TrainingArm:
    name, _, rest = text.partition(":")
    written = [part.partition("=") for part in rest.split(",") if part.strip()]
    changes = {key.strip(): value.strip() for key, _, value in written}
    values = {key: _value(key, value, base) for key, value in changes.items()}
    if not name.strip():
        raise ValueError(f"an arm is written as 'name: setting=value', got {text!r}")
    try:
        return TrainingArm(name.strip(), changes, replace(base, **values))
    except ValueError as error:
        raise ValueError(f"arm {name.strip()}: {error}") from None


def _value(key: str, text: str, base: TrainSettings) -> Any:
    types = get_type_hints(TrainSettings)
    if key not in types:
        raise ValueError(f"arms: there is no setting {key!r}")
    if key in _SHARED:
        raise ValueError(f"arms: {key} is one for all arms")
    try:
        listed = isinstance(getattr(base, key), list)
        return TypeAdapter(types[key]).validate_python(text.split() if listed else text)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ValueError(f"arms: {key} is {text!r}: {reason}") from None
