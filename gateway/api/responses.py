"""The two ways to answer a generation: as one document, or as a stream of chunks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.headers import SESSION_HEADER
from gateway.api.sse import DONE, EventStream, event, until_gone
from gateway.errors import ApiError, failed
from gateway.generation.output import OutputDelta, TokenLogprob
from gateway.generation.request import GenerationRequest
from gateway.json_response import JSONBody
from gateway.schema.common import StreamOptions
from gateway.tasks import end
from specserve import logs

log = logs.get(__name__)


class ResponseFormatter(Protocol):
    """How an endpoint writes choices."""

    object_name: str
    chunk_name: str

    def choice(
        self,
        index: int,
        text: str,
        logprobs: list[TokenLogprob],
        finish_reason: str | None,
    ) -> dict[str, Any]:
        """One entry of `choices` in a document."""

    def chunks(self, index: int, piece: OutputDelta) -> list[dict[str, Any]]:
        """Entries of `choices`, each for a chunk of its own."""


async def answer(
    request: Request, job: GenerationRequest, form: ResponseFormatter, identity: str
) -> Response:
    """Run `job` and answer as its body asks.

    What fails before a verifier has taken the request is an HTTP error.
    """
    head = {
        "id": identity,
        "object": form.chunk_name if job.body.stream else form.object_name,
        "created": int(time.time()),
        "model": job.model.name,
        "system_fingerprint": job.model.system_fingerprint,
    }
    pieces = job.run()
    try:
        return await _answer(request, job, form, head, pieces)
    except ApiError as error:
        error.headers[SESSION_HEADER] = job.session_id
        raise


async def _answer(
    request: Request,
    job: GenerationRequest,
    form: ResponseFormatter,
    head: dict[str, Any],
    pieces: AsyncGenerator[tuple[int, OutputDelta]],
) -> Response:
    headers = {SESSION_HEADER: job.session_id}
    if not job.body.stream:
        document = await until_gone(request, _collect(job, form, pieces))
        return JSONBody({**head, **document}, headers=headers)
    events = _events(job, form, head, pieces)
    try:
        await until_gone(request, _begin(events))
    except BaseException:
        await events.aclose()
        raise
    return EventStream(events, headers, job.services.settings.keep_alive_s)


async def _first(pieces: AsyncGenerator[tuple[int, OutputDelta]]) -> tuple[int, OutputDelta]:
    return await anext(pieces)


async def _begin(events: AsyncGenerator[bytes]) -> None:
    await anext(events)


async def _collect(
    job: GenerationRequest, form: ResponseFormatter, pieces: AsyncGenerator[tuple[int, OutputDelta]]
) -> dict[str, Any]:
    count = len(job.prompts) * job.body.n
    texts: list[list[str]] = [[] for _ in range(count)]
    logprobs: list[list[TokenLogprob]] = [[] for _ in range(count)]
    tokens: list[list[int]] = [[] for _ in range(count)]
    reasons: list[str | None] = [None] * count
    async with aclosing(pieces):
        async for index, piece in pieces:
            texts[index].append(piece.text)
            logprobs[index].extend(piece.logprobs)
            tokens[index].extend(piece.tokens)
            reasons[index] = piece.finish_reason
    choices = [form.choice(i, "".join(texts[i]), logprobs[i], reasons[i]) for i in range(count)]
    if job.body.return_token_ids:
        for choice, ids in zip(choices, tokens, strict=True):
            choice["token_ids"] = ids
    return {"choices": choices, "usage": job.usage(), "holdcourse": job.report()}


async def _events(
    job: GenerationRequest,
    form: ResponseFormatter,
    head: dict[str, Any],
    pieces: AsyncGenerator[tuple[int, OutputDelta]],
) -> AsyncGenerator[bytes]:
    """Write one chunk a round, then the usage if it is wanted.

    What comes first is empty: from there on, a failure is an event. It waits for a verifier to take
    the request, but no longer than a stream may be silent.
    """
    first = asyncio.create_task(_first(pieces))
    try:
        await asyncio.wait({first}, timeout=job.services.settings.keep_alive_s)
        if first.done():
            first.result()
        yield b""
        async for chunk in _chunks(job, form, head, first, pieces):
            yield chunk
    finally:
        await end([first])
        await pieces.aclose()


async def _chunks(
    job: GenerationRequest,
    form: ResponseFormatter,
    head: dict[str, Any],
    first: asyncio.Task[tuple[int, OutputDelta]],
    pieces: AsyncGenerator[tuple[int, OutputDelta]],
) -> AsyncGenerator[bytes]:
    options = job.body.stream_options or StreamOptions()

    def write(index: int, piece: OutputDelta) -> bytes:
        chunks = form.chunks(index, piece)
        if job.body.return_token_ids and piece.tokens:
            chunks[-1]["token_ids"] = list(piece.tokens)
        usage: dict[str, Any] = {}
        if chunks and options.include_usage:
            usage["usage"] = job.usage() if options.continuous_usage_stats else None
        return b"".join(event({**head, "choices": [choice], **usage}) for choice in chunks)

    try:
        yield write(*await first)
        async for index, piece in pieces:
            if chunk := write(index, piece):
                yield chunk
        if options.include_usage:
            final = {"usage": job.usage(), "holdcourse": job.report()}
            yield event({**head, "choices": [], **final})
    except ApiError as error:
        log.info("stream failed", status=error.status, reason=error.reason)
        yield event(error.body)
    except Exception:
        log.exception("stream failed")
        yield event(failed().body)
    yield DONE
