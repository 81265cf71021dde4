"""The gateway as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.middleware import Middleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from gateway import errors
from gateway.front import Front
from gateway.routes import generate, models, operations, sessions
from gateway.services import Services
from gateway.settings import GatewaySettings


def create_app(settings: GatewaySettings) -> FastAPI:
    """Build the application. It reaches for verifiers and Redis when it is started."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        app.state.services = services = Services(settings)
        services.start()
        try:
            yield
        finally:
            await services.close()

    app = FastAPI(
        title="Holdcourse",
        summary="OpenAI's API over speculative decoding that never changes a token.",
        version=version("holdcourse"),
        lifespan=lifespan,
        middleware=[
            Middleware(Front, settings=settings),
            # Not FastAPI's own argument, which puts it before everything and answers in plain text.
            Middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body_size),
        ],
    )
    errors.install(app)
    for module in (generate, models, sessions, operations):
        app.include_router(module.router)
    return app
