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


def to_json(document: Mapping[str, Any]) -> str:
    """Write JSON in one line without spaces, other characters as they are."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return _TO_ESCAPE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class Document(Response):
    """An answer that is one document."""

    media_type = "application/json"

    def render(self, content: Mapping[str, Any]) -> bytes:
        return to_json(content).encode()
