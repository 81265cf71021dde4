"""One verifier: its channel, its health, and the model that it serves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.backends.backoff import Backoff
from gateway.backends.served_model import ServedModel
from specserve import logs
from specwire.v1 import verifier_pb2, verifier_pb2_grpc

Status = grpc.StatusCode

log = logs.get(__name__)

CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A verifier that is stopped, or behind a link that swallows packets, counts as lost.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)
DESCRIBE_TIMEOUT = 30.0
MAX_TOKENIZER_BYTES = 256 * 1024 * 1024

Call = grpc.aio.UnaryStreamCall[verifier_pb2.GenerateRequest, verifier_pb2.GenerateResponse]


class BadDescriptionError(ValueError):
    """A description that cannot be used. The message is one sentence."""


class Verifier:
    """A verifier at an address, watched for as long as `watch` runs."""

    def __init__(self, address: str, accept: Callable[[Verifier, ServedModel], None]) -> None:
        """`accept` is told the model before it is used, and may raise BadDescriptionError."""
        self.address = address
        self.model: ServedModel | None = None
        self.up = False
        self.reason = "not reached yet"
        self.running = 0
        self._accept = accept
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = verifier_pb2_grpc.VerifierServiceStub(self._channel)
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)

    def generate(self, request: verifier_pb2.GenerateRequest, timeout: float) -> Call:
        metadata = (("x-request-id", request.request_id),)
        return self._stub.Generate(request, timeout=timeout, metadata=metadata)

    def suspect(self, reason: str) -> None:
        """Send nothing here until the watch has seen the verifier well again."""
        if self.up:
            log.warning("verifier lost", verifier=self.address, reason=reason)
        self.up = False
        self.reason = reason

    async def watch(self) -> None:
        """Keep `up` and `model` true to life, for ever."""
        backoff = Backoff()
        while True:
            try:
                await self._describe()
                await self._follow_health(backoff)
                self.suspect("its health stream ended")
            except grpc.aio.AioRpcError as error:
                reached = error.code() not in (Status.UNAVAILABLE, Status.DEADLINE_EXCEEDED)
                self.suspect(error.code().name if reached else "cannot be reached")
            except asyncio.CancelledError:
                # grpc raises this also when the other end cancelled.
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                self.suspect("it cancelled a call")
            except ValueError as error:
                if self.reason != str(error):
                    log.error("verifier refused", verifier=self.address, reason=str(error))
                self.suspect(str(error))
            await backoff.wait()

    async def close(self) -> None:
        await self._channel.close()

    async def _describe(self) -> None:
        """Fetch the model's description, and the tokenizer's files unless nothing has changed."""
        files: dict[str, bytearray] = {}
        whole: set[str] = set()
        wire: verifier_pb2.Model | None = None
        call = self._stub.DescribeModel(
            verifier_pb2.DescribeModelRequest(), timeout=DESCRIBE_TIMEOUT, wait_for_ready=True
        )
        async for frame in call:
            if frame is None:
                raise BadDescriptionError("its description cannot be decoded")
            if frame.HasField("model"):
                wire = frame.model
                if self.model is not None and self.model.wire == wire:
                    call.cancel()
                    break
                continue
            files.setdefault(frame.file.name, bytearray()).extend(frame.file.data)
            if frame.file.last:
                whole.add(frame.file.name)
            if sum(map(len, files.values())) > MAX_TOKENIZER_BYTES:
                raise BadDescriptionError(f"its tokenizer is over {MAX_TOKENIZER_BYTES} bytes")
        if wire is None:
            raise BadDescriptionError("it describes no model")
        if self.model is not None and self.model.wire == wire:
            return
        if missing := set(wire.tokenizer_files) - whole:
            raise BadDescriptionError(f"it did not send all of {', '.join(sorted(missing))}")
        contents = {name: bytes(data) for name, data in files.items()}
        self.model = await asyncio.to_thread(ServedModel, wire, contents)

    async def _follow_health(self, backoff: Backoff) -> None:
        async for status in self._health.Watch(health_pb2.HealthCheckRequest()):
            serving = status is not None and status.status == health_pb2.HealthCheckResponse.SERVING
            if serving and not self.up and self.model is not None:
                self._accept(self, self.model)
                backoff.reset()
                self.up, self.reason = True, "serving"
                log.info("verifier serving", verifier=self.address)
            elif not serving:
                self.suspect("it is draining or not ready")
