"""Health, metrics and version: for operators and load generators, without a key."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from gateway.api.openapi import refusals
from gateway.app_state import AppState
from gateway.errors import unavailable
from gateway.schema.responses import Directions, Health, Readiness, Version

router = APIRouter()

PATHS = frozenset({"/", "/health", "/healthz", "/metrics", "/ping", "/readyz", "/version"})


@router.get("/", response_model=Directions)
async def directions(request: Request) -> dict[str, str]:
    """Say where to go from here."""
    return {
        "name": request.app.title,
        "docs": "/docs",
        "openapi": "/openapi.json",
        "models": "/v1/models",
        "health": "/health",
    }


@router.get("/healthz", response_model=Health)
async def healthz() -> dict[str, str]:
    """Answer as long as the process works."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "Requests may not come here."}},
)
async def readyz(request: Request) -> JSONResponse:
    """Say whether requests may come here, and if not, why."""
    services: AppState = request.app.state.services
    reason = services.unready()
    body: dict[str, Any] = {
        "status": "ready" if reason is None else "not ready",
        "reason": reason,
        "redis": "up" if services.sessions.up else "down",
        "verifiers": {v.address: v.reason for v in services.fleet.verifiers.values()},
    }
    return JSONResponse(body, 200 if reason is None else 503)


@router.get("/health", response_model=Health, responses=refusals(503))
@router.get("/ping", response_model=Health, responses=refusals(503))
async def health(request: Request) -> dict[str, str]:
    """Say whether requests can be served now, where vLLM's and SageMaker's clients ask."""
    services: AppState = request.app.state.services
    reason = services.unready()
    if reason is not None:
        raise unavailable(f"{reason[0].upper()}{reason[1:]}.")
    return {"status": "ok"}


@router.get("/version", response_model=Version)
async def get_version(request: Request) -> dict[str, str]:
    """Name the version of the gateway."""
    return {"version": request.app.version}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Show the metrics as Prometheus reads them."""
    services: AppState = request.app.state.services
    return Response(generate_latest(services.metrics.registry), media_type=CONTENT_TYPE_LATEST)
