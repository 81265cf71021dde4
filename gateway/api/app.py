"""The gateway as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.middleware import Middleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from gateway import errors
from gateway.api.middleware import RequestContextMiddleware
from gateway.api.openapi import bodies
from gateway.api.routes import completions, health, models, sessions
from gateway.api.routes.health import PATHS
from gateway.app_state import AppState
from gateway.settings import GatewaySettings
from specserve.version import version


class DocumentedApp(FastAPI):
    """Describes itself as it is."""

    def openapi(self) -> dict[str, Any]:
        """Return the document, without what FastAPI takes for granted.

        Bodies that do not fit are answered with 400, and keys are checked before the routes.
        """
        document = super().openapi()
        schemas = document["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        schemas.update(bodies())
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{}, {"key": []}]
        for path, methods in document["paths"].items():
            for operation in methods.values():
                operation["responses"].pop("422", None)
                if path in PATHS:
                    operation["security"] = []
        return document


def create_app(settings: GatewaySettings) -> FastAPI:
    """Build the application. It reaches for verifiers and Redis when it is started."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        app.state.services = services = AppState(settings)
        services.start()
        try:
            yield
        finally:
            await services.close()

    app = DocumentedApp(
        title="Holdcourse",
        summary="OpenAI's API over speculative decoding that never changes a token.",
        description="HEAD is answered wherever GET is. A null field counts as left out.",
        version=version(),
        lifespan=lifespan,
        middleware=[
            Middleware(RequestContextMiddleware, settings=settings),
            # Not FastAPI's own argument, which puts it before everything and answers in plain text.
            Middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body_size),
        ],
    )
    routers = [module.router for module in (completions, models, sessions, health)]
    errors.install(app, [route for router in routers for route in router.routes])
    for router in routers:
        app.include_router(router)
    return app
