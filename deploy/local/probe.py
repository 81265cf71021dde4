"""Questions for readiness, one for each kind of server."""

import asyncio
import http.client
from typing import Any

import grpc
import redis.asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff


async def grpc_serving(address: str) -> bool:
    """Whether grpc.health.v1 at HOST:PORT reports the whole server as SERVING."""
    # Channels to one address share the back-off after a refused connection unless told not to.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=1)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def http_ok(host: str, port: int, path: str) -> bool:
    """Whether GET answers 200."""

    def get() -> bool:
        connection = http.client.HTTPConnection(host, port, timeout=2)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except http.client.HTTPException:
            return False
        finally:
            connection.close()

    return await asyncio.to_thread(get)


async def redis_answers(url: str) -> bool:
    """Whether a server at the URL answers PING."""
    async with redis.asyncio.from_url(url, retry=Retry(NoBackoff(), 0)) as client:
        try:
            return bool(await client.ping())
        except redis.ConnectionError:
            return False
