"""The gateway as a process: it serves until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI

from gateway.api.app import create_app
from gateway.app_state import AppState
from gateway.http_connection import HTTPConnection
from gateway.settings import GatewaySettings
from specserve import logs
from specserve.settings import StartError

log = logs.get(__name__)


class Server(uvicorn.Server):
    """Ends running requests before it stops; a second signal stops it at once."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, grace: float) -> None:
        super().__init__(config)
        self._app = app
        self._grace = grace
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # A signal before this point ends the process at once.
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._loop is None or self._drain is not None:
            self.should_exit = self.force_exit = True
            return
        self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        self._drain = asyncio.create_task(self._stop())

    async def _stop(self) -> None:
        services: AppState = self._app.state.services
        admission = services.admission
        log.info("draining", running=admission.taken, grace=self._grace)
        if not await admission.drain(self._grace):
            log.warning("grace is over", running=admission.taken)
            await services.fleet.close()
        self.should_exit = True


def configure(app: FastAPI) -> uvicorn.Config:
    """How `app` is served."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=HTTPConnection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        # Longer than clients keep idle connections, so that it is they who close them.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
    )


def serve(settings: GatewaySettings, listener: socket.socket) -> None:
    """Serve on `listener` until a signal comes."""
    app = create_app(settings)
    server = Server(configure(app), app, settings.drain_grace_s)
    host, port = listener.getsockname()[:2]
    log.info("serving", host=host, port=port, verifiers=settings.verifiers)
    # What is there by now stays. The collector need not go through it, in which nothing else runs.
    gc.collect()
    gc.freeze()
    server.run(sockets=[listener])


def main() -> int:
    """Return the exit status: 2 for settings that cannot be used."""
    try:
        settings = GatewaySettings.read("gateway")
        listener = listen(settings.host, settings.port)
    except StartError as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 2
    logs.configure("gateway", settings.log_level)
    serve(settings, listener)
    return 0


def listen(host: str, port: int) -> socket.socket:
    """Open the socket to serve on.

    Raises:
        StartError: the port is taken, or the host is not one of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise StartError(
            f"--host, --port: cannot listen on {host}:{port} ({error.strerror})."
        ) from error
    return listener
