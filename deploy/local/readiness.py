"""Questions for readiness, one for each kind of server."""

import asyncio
import http.client
from typing import Any

import grpc
import redis.asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from specwire.v1 import verifier_pb2 as pb
from specwire.v1.verifier_pb2_grpc import VerifierServiceStub

# Channels to one address share the back-off after a refused connection unless told not to.
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]


async def grpc_serving(address: str) -> bool:
    """Whether grpc.health.v1 at HOST:PORT reports the whole server as SERVING."""
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=1)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def served_model(address: str) -> pb.Model | None:
    """The model that the verifier at HOST:PORT describes, without its files; None if it fails."""
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        stub: Any = VerifierServiceStub(channel)
        call = stub.DescribeModel(pb.DescribeModelRequest(), timeout=5)
        try:
            answer = await call.read()
        except grpc.aio.AioRpcError:
            return None
        finally:
            call.cancel()
    return answer.model if isinstance(answer, pb.DescribeModelResponse) else None


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
