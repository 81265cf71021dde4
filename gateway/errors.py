"""Errors as OpenAI shapes them, and what each gRPC status becomes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import grpc
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import BaseRoute, Match, Route

from gateway.json_response import JSONBody

# Characters of a refusal that the log shows.
MAX_REASON = 300
# Characters that a sentence repeats of what a client sent.
MAX_SHOWN = 100


class ApiError(Exception):
    """An answer other than success. `message` is one sentence for the caller."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        reason: str | None = None,
    ) -> None:
        """`reason` stands in the log instead of a message that may quote a prompt."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        self.reason = (reason or message)[:MAX_REASON]

    @property
    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": error_type(self.status),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONBody:
        return JSONBody(self.body, self.status, self.headers)


def error_type(status: int) -> str:
    """Return OpenAI's name for the class of error that an HTTP status stands for."""
    match status:
        case 401:
            return "authentication_error"
        case 403:
            return "permission_error"
        case 404:
            return "not_found_error"
        case 429:
            return "rate_limit_error"
        case _ if status < 500:
            return "invalid_request_error"
        case 503:
            return "service_unavailable_error"
        case 504:
            return "timeout_error"
        case _:
            return "server_error"


def shown(text: str, limit: int = MAX_SHOWN) -> str:
    """Cut what a client sent to what a sentence may repeat of it."""
    return text if len(text) <= limit else f"{text[:limit]}..."


def invalid(param: str, message: str, *, reason: str | None = None) -> ApiError:
    """A field of the request has a value that cannot be served."""
    return ApiError(400, f"{param}: {message}", param=param, reason=reason)


def context_exceeded(param: str, prompt: int, asked: int, limit: int) -> ApiError:
    """Prompt and output together do not fit the model. Counts are in tokens."""
    return ApiError(
        400,
        f"This model's maximum context length is {limit} tokens, but {prompt + asked} were "
        f"requested ({prompt} in the prompt, {asked} for the output).",
        param=param,
        code="context_length_exceeded",
    )


def overloaded(message: str) -> ApiError:
    """Every place in a bounded queue is taken."""
    return ApiError(429, message, code="overloaded", headers={"Retry-After": "1"})


def unavailable(message: str) -> ApiError:
    """Nobody can serve the request now."""
    return ApiError(503, message, code="unavailable", headers={"Retry-After": "1"})


def stopping() -> ApiError:
    """The gateway ends before the request does."""
    return unavailable("The server is stopping; try again.")


def from_grpc(code: grpc.StatusCode, details: str | None) -> ApiError:
    """What a client sees of a verifier's status. Only a refusal's text is passed on."""
    sentence = details or "The request was refused."
    match code:
        case grpc.StatusCode.INVALID_ARGUMENT:
            return ApiError(400, sentence)
        case grpc.StatusCode.OUT_OF_RANGE:
            return ApiError(400, sentence, code="logits_not_finite")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return overloaded("All verifiers are busy; try again.")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return ApiError(504, "The request took longer than it may.", code="timeout")
        case (
            grpc.StatusCode.UNAVAILABLE
            | grpc.StatusCode.CANCELLED
            | grpc.StatusCode.DATA_LOSS
            | grpc.StatusCode.ABORTED
            | grpc.StatusCode.FAILED_PRECONDITION
        ):
            return unavailable("No verifier could finish the request; try again.")
        case _:
            return ApiError(500, "The verifier failed.", code="verifier_failed")


def failed() -> ApiError:
    """The gateway itself broke; the log says how."""
    return ApiError(500, "The gateway failed.", code="internal_error")


def refuse(request: Request, error: ApiError) -> JSONBody:
    """Answer with an error, and leave its reason for the line in the log."""
    request.state.refusal = error.reason
    return error.response()


def allowed(request: Request, routes: Iterable[BaseRoute], named: str) -> str:
    """Add to the methods `named` by one route of a path those of the others, and HEAD to GET."""
    methods = set(named.split(", "))
    for route in routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            methods |= route.methods or set()
    return ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))


def install(app: FastAPI, routes: Iterable[BaseRoute]) -> None:
    """Answer every refusal of `app`, which has these routes, in OpenAI's shape."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONBody:
        return refuse(request, error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONBody:
        headers = dict(error.headers or {})
        match error.status_code:
            case 404:
                message = f"There is no {shown(request.url.path)} here."
            case 405:
                message = f"{request.method} is not allowed on {shown(request.url.path)}."
                headers["Allow"] = allowed(request, routes, headers["Allow"])
            case 413:
                message = "The body is larger than it may be."
            case _:
                message = str(error.detail)
        return refuse(request, ApiError(error.status_code, message, headers=headers))
