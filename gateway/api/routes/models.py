"""GET /v1/models, POST /tokenize and /detokenize."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from gateway.api.body_reader import reads
from gateway.api.openai_format import name
from gateway.api.openapi import refusals, sent
from gateway.api.prompts import chat_prompt
from gateway.app_state import AppState
from gateway.backends.served_model import ServedModel
from gateway.errors import invalid
from gateway.json_response import LargeJSONBody
from gateway.offload import aside
from gateway.schema.common import check_ids
from gateway.schema.responses import Detokenized, ModelCard, ModelList, Tokenized
from gateway.schema.tokenize import DetokenizeBody, TokenizeBody

router = APIRouter()

_REFUSALS = refusals(400, 401, 404, 413, 500, 503)


def _model(request: Request) -> ServedModel:
    services: AppState = request.app.state.services
    return services.fleet.model


@router.get("/v1/models", response_model=ModelList, responses=refusals(401, 500, 503))
async def list_models(request: Request) -> dict[str, Any]:
    """List the one model that is served."""
    return {"object": "list", "data": [_model(request).card()]}


@router.get(
    "/v1/models/{name:path}", response_model=ModelCard, responses=refusals(401, 404, 500, 503)
)
async def get_model(name: str, request: Request) -> dict[str, Any]:
    """Describe the model, under any of its names."""
    model = _model(request)
    model.check_name(name)
    return model.card()


@router.post(
    "/tokenize", response_model=Tokenized, responses=_REFUSALS, openapi_extra=sent(TokenizeBody)
)
async def tokenize(
    body: Annotated[TokenizeBody, Depends(reads(TokenizeBody))], request: Request
) -> Response:
    """Turn a text or a conversation into the tokens that a generation would start from."""
    model = _model(request)
    model.check_name(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise invalid("prompt", "give either prompt or messages.")
    if body.messages is not None:
        tokens = await chat_prompt(
            model,
            body.messages,
            body.chat_template_kwargs,
            size=len(await request.body()),
            add_generation_prompt=body.add_generation_prompt,
            add_special_tokens=bool(body.add_special_tokens),
        )
    else:
        special = body.add_special_tokens is not False
        [tokens] = await model.tokenizer.encode([body.prompt or ""], add_special_tokens=special)
    return await aside(len(tokens), _tokenized, model, tokens, body.return_token_strs)


def _tokenized(model: ServedModel, tokens: list[int], with_strings: bool) -> Response:
    strings = None
    if with_strings:
        names = {token: name(model.tokenizer, token) for token in set(tokens)}
        strings = [names[token] for token in tokens]
    return LargeJSONBody(
        {
            "count": len(tokens),
            "max_model_len": model.max_len,
            "tokens": tokens,
            "token_strs": strings,
        }
    )


@router.post(
    "/detokenize",
    response_model=Detokenized,
    responses=_REFUSALS,
    openapi_extra=sent(DetokenizeBody),
)
async def detokenize(
    body: Annotated[DetokenizeBody, Depends(reads(DetokenizeBody))], request: Request
) -> Response:
    """Write tokens as text, special ones included."""
    model = _model(request)
    model.check_name(body.model)
    check_ids("tokens", body.tokens, model)
    return await aside(len(body.tokens), _detokenized, model, body.tokens)


def _detokenized(model: ServedModel, tokens: list[int]) -> Response:
    return LargeJSONBody({"prompt": model.tokenizer.decode(tokens, skip_special_tokens=False)})
