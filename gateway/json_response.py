"""JSON documents as they are sent."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

# What JSON leaves as it is: ends of lines, where clients split by those of Unicode, and surrogates,
# which cannot be encoded.
_TO_ESCAPE = re.compile("[\x85\u2028\u2029\ud800-\udfff]")


def to_json(document: Any) -> str:
    """Write JSON in one line without spaces, other characters as they are."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return _TO_ESCAPE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


# Entries or characters that are written in one go, in which no other thread runs.
_SLICE = 16_384


def large_to_json(document: Mapping[str, Any]) -> str:
    """Write what `to_json` does, long lists and texts slice by slice."""
    return f"{{{','.join(f'{to_json(key)}:{_sliced(value)}' for key, value in document.items())}}}"


def _sliced(value: Any) -> str:
    if not isinstance(value, (str, list)) or not value:
        return to_json(value)
    slices = [to_json(value[begin : begin + _SLICE]) for begin in range(0, len(value), _SLICE)]
    between = "" if isinstance(value, str) else ","
    return slices[0][0] + between.join(part[1:-1] for part in slices) + slices[0][-1]


class JSONBody(Response):
    """An answer that is one document."""

    media_type = "application/json"

    def render(self, content: Mapping[str, Any]) -> bytes:
        return to_json(content).encode()


class LargeJSONBody(JSONBody):
    """An answer with long lists or texts, to be made on a thread."""

    def render(self, content: Mapping[str, Any]) -> bytes:
        return large_to_json(content).encode()
