"""What every request's body is."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

# What JSON Schema says about a value, not of it.
ABOUT = ("title", "description", "default")


class Body(BaseModel):
    """A JSON object. null means absent; unknown fields with values are refused, not ignored."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        """Leave out nulls, and unknown fields but the first, as one is enough to refuse."""
        if not isinstance(value, dict):
            return value
        given = {key: item for key, item in value.items() if item is not None}
        fields = cls.model_fields
        for key in [key for key in given if key not in fields][1:]:
            del given[key]
        return given

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Let null stand for what need not be given."""
        schema = handler(core)
        own = handler.resolve_ref_schema(schema)
        own["additionalProperties"] = {"type": "null"}
        needed = own.get("required", [])
        for name, value in own.get("properties", {}).items():
            if name not in needed and {"type": "null"} not in value.get("anyOf", ()):
                about = {key: value.pop(key) for key in ABOUT if key in value}
                forms = value["anyOf"] if [*value] == ["anyOf"] else [value]
                own["properties"][name] = {"anyOf": [*forms, {"type": "null"}], **about}
        return schema
