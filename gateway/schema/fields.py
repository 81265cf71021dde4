"""Kinds of values that fields of requests have."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, WithJsonSchema
from pydantic.config import JsonDict

from specwire import limits

T = TypeVar("T")

MAX_STOPS = 16

# Token ids of a prompt; models have less room.
MAX_PROMPT = 2**20
# As keys of objects are written.
TOKEN_ID = "(0|[1-9][0-9]{0,9})"
# Characters of a stop string.
MAX_STOP = 1024


def _whole(value: object) -> object:
    """JSON has one kind of number: 4.0 is the integer 4."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
# Limits stand before what makes a number whole, where JSON Schema gets them in its own words.
Positive = Annotated[int, Field(ge=1, le=2**32 - 1), BeforeValidator(_whole)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64), BeforeValidator(_whole)]
TopLogprobs = Annotated[int, Field(ge=0, le=limits.MAX_TOP_LOGPROBS), BeforeValidator(_whole)]
Count = Annotated[int, Field(ge=0, le=2**32 - 1), BeforeValidator(_whole)]
TokenId = Count
Tokens = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_PROMPT, fail_fast=True)]


def inside(allowed: limits.Range) -> Any:
    """Return the constraint of a field whose numbers must be in the range."""
    above, least = (allowed.low, None) if allowed.above else (None, allowed.low)
    return Field(gt=above, ge=least, le=allowed.high, allow_inf_nan=False)


Bias = Annotated[float, inside(limits.LOGIT_BIAS)]


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a lone surrogate is not text") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Stop = Annotated[Text, Field(min_length=1, max_length=MAX_STOP)]


def by_type(words: str, *types: type) -> Discriminator:
    """Tell the branches of a union by the type of the value, which is each branch's tag.

    What is wrong is then said of the one branch that was meant. `words` name them all.
    """

    def tag(value: object) -> str | None:
        return type(value).__name__ if type(value) in types else None

    return Discriminator(
        tag, custom_error_type="wrong_type", custom_error_message=f"must be {words}"
    )


Stops = Annotated[
    Annotated[Stop, Tag("str")]
    | Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True), Tag("list")],
    by_type("a string or a list of strings", str, list),
]


def _refuse(value: T) -> T:
    if value:
        raise ValueError("not supported")
    return value


def _refuse_several(value: int) -> int:
    if value != 1:
        raise ValueError("not supported")
    return value


# What clients may send as long as it asks for nothing.
Off = Annotated[bool, AfterValidator(_refuse), WithJsonSchema({"const": False})]
NoText = Annotated[str, AfterValidator(_refuse), WithJsonSchema({"const": ""})]
Empty = Annotated[
    list[Any], AfterValidator(_refuse), WithJsonSchema({"type": "array", "maxItems": 0})
]
One = Annotated[Whole, AfterValidator(_refuse_several), WithJsonSchema({"const": 1})]


def needs(field: str, value: JsonDict, other: str) -> JsonDict:
    """Say in JSON Schema that such a value needs another field to be true."""
    return {
        "if": {"required": [field], "properties": {field: value}},
        "then": {"required": [other], "properties": {other: {"const": True}}},
    }


def _bias(value: object) -> object:
    if isinstance(value, dict):
        if len(value) > limits.MAX_BIASES:
            raise ValueError(f"at most {limits.MAX_BIASES} entries")
        if not all(re.fullmatch(TOKEN_ID, str(token)) for token in value):
            raise ValueError("keys must be token ids")
        return {int(token): bias for token, bias in value.items()}
    return value


def _biases(schema: dict[str, Any]) -> None:
    """Say about the keys what JSON Schema says about strings."""
    schema["propertyNames"] = {"pattern": f"^{TOKEN_ID}$"}


Biases = Annotated[
    Annotated[dict[TokenId, Bias], Field(max_length=limits.MAX_BIASES, fail_fast=True)],
    BeforeValidator(_bias),
    Field(json_schema_extra=_biases),
]
