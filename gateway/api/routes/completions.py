"""POST /v1/chat/completions and /v1/completions."""

from __future__ import annotations

import secrets
import time
from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from gateway.api.body_reader import reads
from gateway.api.headers import request_id, session_id
from gateway.api.openai_format import ChatFormatter, CompletionFormatter
from gateway.api.openapi import SESSION, generated, sent
from gateway.api.prompts import chat_prompt, text_prompts
from gateway.api.responses import answer
from gateway.app_state import AppState
from gateway.backends.served_model import ServedModel
from gateway.generation.request import GenerationRequest, Prompt
from gateway.schema.chat import ChatBody
from gateway.schema.common import GenerationBody
from gateway.schema.completion import CompletionBody
from gateway.schema.responses import ChatCompletion, TextCompletion

# Of a number that every reader of JSON keeps: some have doubles only.
EXACT_BITS = 53

router = APIRouter()


@router.post(
    "/v1/chat/completions",
    responses=generated(ChatCompletion),
    openapi_extra=sent(ChatBody) | SESSION,
)
async def chat(body: Annotated[ChatBody, Depends(reads(ChatBody))], request: Request) -> Response:
    """Continue a conversation."""
    arrived = time.monotonic()
    services: AppState = request.app.state.services
    model = services.fleet.model
    body.check(model)
    size = len(await request.body())
    tokens = await chat_prompt(model, body.messages, body.chat_template_kwargs, size=size)
    prompt = Prompt(tokens, body.check_length("messages", model, len(tokens), body.limit))
    top = body.top_logprobs if body.logprobs else None
    job = _job(request, model, body, [prompt], top, arrived)
    form = ChatFormatter(model.tokenizer, body.logprobs)
    return await answer(request, job, form, f"chatcmpl-{uuid4().hex}")


@router.post(
    "/v1/completions",
    responses=generated(TextCompletion),
    openapi_extra=sent(CompletionBody) | SESSION,
)
async def complete(
    body: Annotated[CompletionBody, Depends(reads(CompletionBody))], request: Request
) -> Response:
    """Continue texts."""
    arrived = time.monotonic()
    services: AppState = request.app.state.services
    model = services.fleet.model
    body.check(model)
    prompts = []
    for tokens in await text_prompts(model, body.prompts):
        limit = body.check_length("prompt", model, len(tokens), body.limit)
        prompts.append(Prompt(tokens, limit))
    job = _job(request, model, body, prompts, body.logprobs, arrived)
    form = CompletionFormatter(model.tokenizer, body.logprobs is not None)
    return await answer(request, job, form, f"cmpl-{uuid4().hex}")


def _job(
    request: Request,
    model: ServedModel,
    body: GenerationBody,
    prompts: list[Prompt],
    top_logprobs: int | None,
    arrived: float,
) -> GenerationRequest:
    seed = body.fixed_seed
    return GenerationRequest(
        request.app.state.services,
        model,
        body,
        prompts,
        top_logprobs,
        request_id(request),
        session_id(request),
        secrets.randbits(EXACT_BITS) if seed is None else seed,
        arrived,
    )
