"""VerifierService over real gRPC on loopback, the engine in the same process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from specserve.model_source import ModelSource
from specserve.server import ServiceServer
from specwire.v1 import verifier_pb2 as pb
from specwire.v1.verifier_pb2_grpc import (
    VerifierServiceStub,
    add_VerifierServiceServicer_to_server,
)
from tests.support.running_engine import settings_for, target_of
from verifier_svc.__main__ import describe
from verifier_svc.build import build_engine, document_length
from verifier_svc.engine.dispatcher import Dispatcher
from verifier_svc.engine.engine import Engine
from verifier_svc.metrics import Metrics
from verifier_svc.model.loading.loader import load_tokenizer_files
from verifier_svc.service.servicer import VerifierServicer

NAME = "specwire.v1.VerifierService"


@dataclass
class Served:
    """A running service and a client of it."""

    stub: Any
    channel: grpc.aio.Channel
    port: int
    engine: Engine
    dispatcher: Dispatcher
    registry: CollectorRegistry
    files: dict[str, bytes]

    async def generate(self, request: pb.GenerateRequest) -> list[pb.GenerateResponse]:
        return [frame async for frame in self.stub.Generate(request)]

    async def refusal(self, request: pb.GenerateRequest) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await self.generate(request)
        return error.value.code(), error.value.details() or ""

    async def idle(self) -> None:
        """Wait until no call is left."""
        async with asyncio.timeout(10):
            while self.dispatcher.calls:
                await asyncio.sleep(0.005)

    def outcome(self, name: str) -> float:
        label = {"outcome": name}
        return self.registry.get_sample_value("holdcourse_verifier_requests_total", label) or 0.0


@asynccontextmanager
async def served_verifier(folder: Path, *flags: str) -> AsyncIterator[Served]:
    """Serve the target in `folder` on a free port."""
    settings = settings_for(folder, *flags)
    target, registry = target_of(folder), CollectorRegistry()
    files = load_tokenizer_files(ModelSource.parse(str(folder)), trust_remote_code=False)
    dispatcher, metrics = Dispatcher(), Metrics(registry)
    engine = build_engine(settings, target, None, dispatcher.deliver, metrics)
    servicer = VerifierServicer(
        engine=engine,
        dispatcher=dispatcher,
        model=describe(settings, target, sorted(files), engine.max_model_len),
        tokenizer_files=files,
        max_waiting=settings.max_waiting,
        max_document_len=document_length(settings, target),
        metrics=metrics,
    )
    server = ServiceServer(NAME, lambda s: add_VerifierServiceServicer_to_server(servicer, s))
    engine.start()
    port = await server.start("127.0.0.1:0")
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = VerifierServiceStub(channel)
            yield Served(stub, channel, port, engine, dispatcher, registry, files)
    finally:
        await server.stop(0)
        engine.stop()
