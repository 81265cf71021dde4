"""What pydantic finds in a request's body, as one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.errors import ApiError, invalid, shown


def field_name(location: Sequence[int | str], body: object, missing: bool) -> str:
    """Write where a value is: `messages[0].content`.

    Pydantic's locations also name the branches of unions, which the sender does not know.
    """
    name = ""
    for part in location:
        if isinstance(body, Mapping) and (part in body or missing):
            name += f".{shown(str(part))}" if name else shown(str(part))
            body = body.get(part)
        elif isinstance(body, list) and isinstance(part, int) and part < len(body):
            name += f"[{part}]"
            body = body[part]
    return name


def from_validation(errors: Sequence[Mapping[str, Any]], body: object) -> ApiError:
    """Turn the most precise of pydantic's findings about `body` into a sentence."""
    if not isinstance(body, Mapping):
        return ApiError(400, "The body must be a JSON object, sent as application/json.")
    named = [
        (field_name(error["loc"], body, error["type"] == "missing"), error) for error in errors
    ]
    name, error = max(named, key=lambda pair: pair[0].count("[") + pair[0].count("."))
    if not name and error["type"] != "extra_forbidden":
        return ApiError(400, "The body has a name that is no text: a lone surrogate.")
    return invalid(name or '""', f"{_words(error)}.")


def _words(error: Mapping[str, Any]) -> str:
    """What is wrong with a value, in JSON's terms."""
    limits = error.get("ctx", {})
    match error["type"]:
        case "missing":
            return "this field is required"
        case "extra_forbidden":
            return "this field is not supported"
        case "literal_error":
            return f"not supported; must be {limits['expected']}"
        case "too_short" | "string_too_short" if limits["min_length"] == 1:
            return "must not be empty"
        case "too_long" if limits["field_type"] in ("List", "Dictionary"):
            return f"at most {limits['max_length']} entries"
        case "too_long" | "string_too_long":
            return f"at most {limits['max_length']} characters"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "must be an object"
        case "list_type":
            return "must be a list"
        case "string_type":
            return "must be a string"
        case "int_type" | "int_from_float":
            return "must be an integer"
        case "float_type":
            return "must be a number"
        case "bool_type":
            return "must be true or false"
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    return message.replace("should be", "must be", 1).rstrip(".")
