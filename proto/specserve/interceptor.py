"""What every gRPC call of a service goes through: errors become status codes, logs get an id."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
import grpc.aio
from structlog.contextvars import bind_contextvars

from specserve import logs
from specwire.errors import InvalidRequest, WireError
from specwire.handshake import REQUEST_ID_KEY

Context = grpc.aio.ServicerContext[Any, Any]

_log = logs.get(__name__)
# Stands for request bytes that are no message of the expected type.
_UNDECODABLE = object()


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler of a server.

    A `WireError` ends the call with its code and sentence, a request that cannot be decoded with
    INVALID_ARGUMENT, and any other exception is logged and ends it with INTERNAL. Handlers with
    streamed requests must take them from their iterator, not from `context.read()`.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        metadata = dict(handler_call_details.invocation_metadata or ())
        request_id = str(metadata.get(REQUEST_ID_KEY, ""))
        kind = _KINDS[handler.request_streaming, handler.response_streaming]
        behaviour = getattr(handler, kind)
        wrap = _guard_stream if handler.response_streaming else _guard_unary
        return getattr(grpc, f"{kind}_rpc_method_handler")(
            wrap(behaviour, handler.request_streaming, request_id),
            request_deserializer=_tolerant(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )


_KINDS = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}


def _tolerant(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def attempt(data: bytes) -> Any:
        try:
            return deserialize(data)
        except Exception:
            return _UNDECODABLE

    return attempt


def _checked(request: Any, streaming: bool) -> Any:
    return _checked_stream(request) if streaming else _checked_message(request)


def _checked_message(message: Any) -> Any:
    if message is _UNDECODABLE:
        raise InvalidRequest("The request is not a message of this method.")
    return message


async def _checked_stream(messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for message in messages:
        yield _checked_message(message)


def _guard_unary(behaviour: Callable[..., Any], streaming: bool, request_id: str) -> Any:
    async def call(request: Any, context: Context) -> Any:
        if request_id:
            bind_contextvars(request_id=request_id)
        try:
            return await behaviour(_checked(request, streaming), context)
        except Exception as error:
            await _abort(error, context)

    return call


def _guard_stream(behaviour: Callable[..., Any], streaming: bool, request_id: str) -> Any:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        if request_id:
            bind_contextvars(request_id=request_id)
        try:
            answers = behaviour(_checked(request, streaming), context)
            if inspect.isawaitable(answers):
                await answers
                return
            async with aclosing(answers):
                async for answer in answers:
                    yield answer
        except Exception as error:
            await _abort(error, context)

    return call


async def _abort(error: Exception, context: Context) -> NoReturn:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, WireError):
        await context.abort(error.code, str(error))
    _log.error("call failed", exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, "Internal error; the service's log has it.")
