"""One JSON object whose keys must all be taken."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from drafter_svc.formats.refused_keys import refusal
from drafter_svc.model.config import CheckpointError, require

T = TypeVar("T")

_KINDS: dict[type, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    dict: "an object",
    list: "a list",
}


class Section:
    """Takes values out of a JSON object; what is left in the end was not understood."""

    def __init__(self, values: Mapping[str, Any], name: str) -> None:
        self._values = dict(values)
        self.name = name

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def take(self, key: str, kind: type[T]) -> T:
        """A required value; an integer is taken for a float, true is not taken for 1."""
        require(key in self._values, f"{self.name} has no {key}")
        return self._checked(key, self._values.pop(key), kind)

    def optional(self, key: str, kind: type[T]) -> T | None:
        """A value that may be null or left out."""
        value = self._values.pop(key, None)
        return None if value is None else self._checked(key, value, kind)

    def default(self, key: str, kind: type[T], default: T) -> T:
        """A value that all readers take where it is null or left out."""
        value = self.optional(key, kind)
        return default if value is None else value

    def agreed(self, keys: Iterable[str], kind: type[T]) -> T | None:
        """One value under several names, which must not contradict each other."""
        found = {key: value for key in keys if (value := self.optional(key, kind)) is not None}
        values = list(found.values())
        require(
            all(value == values[0] for value in values),
            f"{self.name}: {' and '.join(found)} contradict each other",
        )
        return values[0] if values else None

    def fixed(self, expected: Mapping[str, Any]) -> None:
        """Keys that may be left out; any value but the given one computes something else."""
        for key, value in expected.items():
            found = self._values.pop(key, value)
            require(
                found == value or found is None,
                f"{self.name}: {key} is {found!r}, this drafter computes {value!r} only",
            )

    def drop(self, keys: Iterable[str]) -> None:
        """Keys that change nothing in the forward pass."""
        for key in keys:
            self._values.pop(key, None)

    def rest(self) -> dict[str, Any]:
        """Take all that is left, but null."""
        left = {key: value for key, value in self._values.items() if value is not None}
        self._values.clear()
        return left

    def finish(self) -> None:
        """Refuse what nobody took. Null says nothing, whatever the key."""
        left = sorted(self.rest())
        for key in left:
            why = refusal(key)
            require(
                why is None,
                f"{self.name} has {key}: {why}, which this drafter does not compute",
            )
        unknown = ", ".join(left)
        require(
            not unknown,
            f"{self.name} has keys that this drafter does not know: {unknown}; remove those that "
            "change nothing in the drafter's forward pass",
        )

    def _checked(self, key: str, value: Any, kind: type[T]) -> T:
        if kind is float and type(value) is int:
            require(abs(value) < 1 << 1023, f"{self.name}: {key} is not a finite number")
            value = float(value)
        require(type(value) is kind, f"{self.name}: {key} must be {_KINDS[kind]}, got {value!r}")
        return value  # type: ignore[no-any-return]


def parse(text: str, name: str) -> Mapping[str, Any]:
    """A JSON object from text."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{name} is not valid JSON: {error}") from None
    except RecursionError:
        raise CheckpointError(f"{name} is nested too deeply") from None
    require(isinstance(value, dict), f"{name} must hold one JSON object")
    return value  # type: ignore[no-any-return]
