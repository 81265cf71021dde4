"""From the bytes of a request to a body of the schema."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from gateway.api.sse import ClientGoneError
from gateway.errors import ApiError, shown
from gateway.offload import aside
from gateway.schema.body import Body
from gateway.schema.validation_errors import from_validation

B = TypeVar("B", bound=Body)

# Lists, objects and names of fields in a body. Python's reader makes them in one go, in which
# nothing else runs; a million of them take a second.
MAX_PARTS = 131_072
# Digits of an integer, more than a number of the schema can have.
MAX_DIGITS = 100

# Strings are matched so that what is in them is not. No way back, so that it takes one pass.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{:]', re.DOTALL)
_QUOTE = b'"'


def reads(kind: type[B]) -> Callable[[Request], Awaitable[B]]:
    """Return what reads a request's body of a kind: a dependency of FastAPI's.

    FastAPI's own reading takes place on the event loop, however large the body is, and collects
    an error for every element.
    """

    async def read(request: Request) -> B:
        try:
            raw = await request.body()
        except ClientDisconnect:
            raise ClientGoneError from None
        _check_headers(request.headers)
        return await aside(len(raw), parse, kind, raw)

    return read


def parse(kind: type[B], raw: bytes) -> B:
    """Read a body of JSON.

    Raises:
        ApiError: 400 that says in one sentence what is wrong, and names the field.
    """
    document = _read(raw) if raw else None
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
    raise from_validation(errors, document)


def _check_headers(headers: Headers) -> None:
    encoding = headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise ApiError(
            400, f"Content-Encoding: {shown(encoding)} is not supported; send the body as it is."
        )
    form = headers.get("content-type", "").partition(";")[0].strip().lower()
    if form != "application/json" and not re.fullmatch(r"application/.*\+json", form):
        raise ApiError(400, "The body must be a JSON object, sent as application/json.")


def _read(raw: bytes) -> Any:
    _check_parts(raw)
    try:
        return json.loads(raw, parse_int=_integer)
    except json.JSONDecodeError as error:
        reason = error.msg.removesuffix(" at").rstrip(": ")
        where = f"line {error.lineno}, column {error.colno}"
        message = f"The body is not valid JSON: {reason} at {where}."
    except UnicodeDecodeError as error:
        message = f"The body is not valid JSON: byte {error.start} is not {error.encoding.upper()}."
    except RecursionError:
        message = "The body is nested too deeply to be read."
    raise ApiError(400, message, code="invalid_json")


def _check_parts(raw: bytes) -> None:
    if sum(map(raw.count, (b"[", b"{", b":"))) <= MAX_PARTS:
        return
    parts = 0
    for match in _TOKEN.finditer(raw):
        parts += not match[0].startswith(_QUOTE)
        if parts > MAX_PARTS:
            raise ApiError(
                400, f"The body has more than {MAX_PARTS} lists, objects and names of fields."
            )


def _integer(digits: str) -> int:
    """Called from Python for each number, which lets other threads run in between."""
    if len(digits) > MAX_DIGITS:
        raise ApiError(
            400, f"The body has an integer of {len(digits)} characters, at most {MAX_DIGITS}."
        )
    return int(digits)
