"""What every request passes first: its id, its key, its size, and a line in the log.

HEAD goes on as GET; the server leaves out the body.
"""

from __future__ import annotations

import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.api.headers import REQUEST_HEADER, check_key, read_request_id
from gateway.api.routes.health import PATHS
from gateway.api.sse import ClientGoneError
from gateway.errors import ApiError, failed, refuse
from gateway.settings import GatewaySettings
from specserve import logs

log = logs.get(__name__)


# What the log shows where no status was sent.
CLIENT_GONE = 499


class RequestContextMiddleware:
    """ASGI middleware around the whole app."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        identity = read_request_id(headers)
        scope.setdefault("state", {})["request_id"] = identity
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=identity)
        began = time.monotonic()
        status = CLIENT_GONE
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_HEADER] = identity
            await send(message)

        operational = scope["path"] in PATHS
        try:
            if not operational and self._settings.api_keys:
                check_key(headers, self._settings.api_keys)
            self._check_size(headers)
        except ApiError as error:
            await refuse(Request(scope), error)(scope, receive, send_named)
        else:
            try:
                await self._app(inner, receive, send_named)
            except ClientGoneError:
                pass
            except Exception:
                log.exception("request failed")
                if status != CLIENT_GONE:
                    raise
                await refuse(Request(scope), failed())(scope, receive, send_named)
        finally:
            log.log(
                10 if operational else 20,
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                ms=round(1000 * (time.monotonic() - began), 1),
                **refusal(scope),
            )

    def _check_size(self, headers: Headers) -> None:
        length = headers.get("content-length", "0")
        limit = self._settings.max_body_size
        if length.isdigit() and int(length) > limit:
            raise ApiError(413, f"The body has {length} bytes, at most {limit} are read.")


def refusal(scope: Scope) -> dict[str, str]:
    """Why the request was refused, for the log; empty if it was not."""
    reason = scope["state"].get("refusal")
    return {} if reason is None else {"refusal": reason}
