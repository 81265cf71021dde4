"""Ids of requests and sessions, and keys: what stands in headers."""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from uuid import uuid4

from starlette.datastructures import Headers
from starlette.requests import Request

from gateway.errors import ApiError, invalid

REQUEST_HEADER = "x-request-id"
SESSION_HEADER = "x-session-id"
ID = re.compile(r"[A-Za-z0-9._:@-]{1,128}")


def request_id(request: Request) -> str:
    """Return the id that `Front` gave the request."""
    identity: str = request.scope["state"]["request_id"]
    return identity


def read_request_id(headers: Headers) -> str:
    """Take the caller's id if it is one, else make one up."""
    given = headers.get(REQUEST_HEADER, "")
    return given if ID.fullmatch(given) else f"req-{uuid4().hex}"


def session_id(request: Request) -> str:
    """Take the session that the request belongs to, or begin one.

    Raises:
        ApiError: 400, the header is not an id.
    """
    given = request.headers.get(SESSION_HEADER)
    return f"sess-{uuid4().hex}" if given is None else check_session_id(given)


def check_session_id(text: str) -> str:
    """Return `text` if it may name a session.

    Raises:
        ApiError: 400 otherwise.
    """
    if not ID.fullmatch(text):
        raise invalid(SESSION_HEADER, "1 to 128 letters, digits or any of . _ : @ - make an id.")
    return text


def check_key(headers: Headers, keys: Sequence[str]) -> None:
    """Let a request in only with one of `keys`.

    Raises:
        ApiError: 401.
    """
    scheme, _, given = headers.get("authorization", "").partition(" ")
    presented = given.strip().encode() if scheme.lower() == "bearer" else b""
    # Every key is compared, so that the time taken tells nothing.
    matches = [hmac.compare_digest(presented, key.encode()) for key in keys]
    if not any(matches):
        raise ApiError(
            401,
            "A valid API key is required: Authorization: Bearer KEY.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
