"""A grpc.aio server as both services run it: health, reflection, errors, metrics, drain."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import grpc
import grpc.aio
import prometheus_client
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from specserve import cpu_affinity, logs
from specserve.interceptor import ErrorInterceptor
from specserve.settings import StartError
from specwire.limits import MAX_MESSAGE_BYTES, message_limits

_PING_INTERVAL_MS = 5_000
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 4 * _PING_INTERVAL_MS),
    ("grpc.keepalive_timeout_ms", 2 * _PING_INTERVAL_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Below it, clients' keepalive pings would be answered by GOAWAY too_many_pings.
    ("grpc.http2.min_ping_interval_without_data_ms", _PING_INTERVAL_MS),
]

_log = logs.get(__name__)


class ServiceServer:
    """One gRPC service with health and reflection. Must be made inside a running event loop."""

    def __init__(
        self,
        name: str,
        register: Callable[[grpc.aio.Server], None],
        *,
        max_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        """Take a service's full name, what adds its servicer, and the most that a message has."""
        self._name = name
        self._health = health.aio.HealthServicer()
        options = [*OPTIONS, *message_limits(max_bytes)]
        self._server = grpc.aio.server(options=options, interceptors=[ErrorInterceptor()])
        register(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self, listen: str) -> int:
        """Listen on HOST:PORT, report SERVING, and return the port.

        Raises:
            StartError: the address cannot be bound.
        """
        check_bindable(listen)
        try:
            port = self._server.add_insecure_port(listen)
        except RuntimeError:
            raise StartError(f"Cannot listen on {listen}.") from None
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        await self._health.set(self._name, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()
        return port

    async def drain(self) -> None:
        """Report NOT_SERVING from now on. Calls are still taken."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace: float) -> None:
        """Refuse new calls, give those in flight `grace` seconds, then cancel them."""
        await self.drain()
        await self._server.stop(grace)


def check_bindable(listen: str) -> None:
    """Find out why an address cannot be listened on, which grpc does not tell.

    Raises:
        StartError: it cannot.
    """
    host, _, port = listen.rpartition(":")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        raise StartError(f"Cannot listen on {listen}: {error.strerror}.") from None


def serve_metrics(listen: str, port: int) -> None:
    """Serve Prometheus metrics over HTTP on the host of `listen`; port 0 serves none.

    Raises:
        StartError: the port cannot be bound.
    """
    if not port:
        return
    host = listen.rpartition(":")[0].strip("[]")
    try:
        prometheus_client.start_http_server(port, addr=host)
    except OSError as error:
        raise StartError(f"Cannot serve metrics on {host}:{port}: {error.strerror}.") from None


async def serve(
    server: ServiceServer,
    listen: str,
    *,
    grace: float,
    on_drain: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    Args:
        server: not started yet.
        listen: HOST:PORT.
        grace: seconds that calls in flight get to end by themselves.
        on_drain: called when the drain begins, for what the service itself has to wind up.

    Raises:
        StartError: the address cannot be bound.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    port = await server.start(listen)
    _log.info("serving", listen=f"{listen.rpartition(':')[0]}:{port}")
    await stopping.wait()
    _log.info("draining", grace_s=grace)
    await server.drain()
    if on_drain is not None:
        await on_drain()
    await server.stop(grace)
    _log.info("stopped")


def run(program: str, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a service to its end and exit: 0, or 2 with one sentence where it could not start."""
    cpu_affinity.take_all()
    try:
        cpu_affinity.check_threads(os.environ)
        # Wakes for a message of another thread or process sooner than asyncio's own loop.
        uvloop.run(main())
    except StartError as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(2)
