"""Runs one choice on a verifier, and on another when that one fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

import grpc

from gateway import errors
from gateway.backends.backoff import Backoff
from gateway.backends.placement import Placement
from gateway.backends.session_store import Session
from gateway.backends.verifier_pool import VerifierPool
from gateway.generation.output import ChoiceOutput, OutputDelta
from gateway.metrics import Metrics
from specserve import logs
from specwire.errors import DataLoss
from specwire.v1 import verifier_pb2

log = logs.get(__name__)

Status = grpc.StatusCode

# A request that breaks verifiers must not be carried through all of them.
MAX_CRASHES = 2
# Further calls without a new token, while there is none at all and later.
MAX_TRIES_FOR_NOTHING = 3
MAX_TRIES = 10
# The verifier broke, and nothing says that the request is to blame.
LOST = {Status.UNAVAILABLE, Status.DATA_LOSS, Status.CANCELLED, Status.ABORTED}
BUSY = {Status.RESOURCE_EXHAUSTED}
FENCED = {Status.FAILED_PRECONDITION}
CRASHED = {Status.INTERNAL, Status.UNKNOWN}


@dataclass
class Failure:
    """Why a stream ended too early."""

    code: grpc.StatusCode
    details: str

    @property
    def api_error(self) -> errors.ApiError:
        return errors.from_grpc(self.code, self.details)


@dataclass
class ChoiceRunner:
    """One choice. `request` holds everything but tokens and epoch."""

    fleet: VerifierPool
    placement: Placement
    generation: ChoiceOutput
    request: verifier_pb2.GenerateRequest
    deadline: float
    failover_timeout: float
    metrics: Metrics
    moves: int = field(default=0, init=False)
    _tries: int = field(default=0, init=False)
    _give_up: float = field(default=0.0, init=False)
    _backoff: Backoff = field(default_factory=Backoff, init=False)

    def __post_init__(self) -> None:
        self._progressed()

    async def run(self) -> AsyncGenerator[OutputDelta]:
        """Yield the pieces of the output; the last one has a finish reason.

        Raises:
            ApiError: the verifier refuses, or nobody can go on.
        """
        generation = self.generation
        placed = await self.placement.place()
        crashes = 0
        while True:
            if placed is None:
                raise errors.unavailable("No verifier is ready; try again.")
            before = len(generation.output)
            failure = Failure(Status.DATA_LOSS, "the stream was cut off")
            try:
                async with aclosing(self._stream(placed)) as stream:
                    async for piece in stream:
                        yield piece
                        if piece.finish_reason is not None:
                            return
            except grpc.aio.AioRpcError as error:
                failure = Failure(error.code(), error.details() or "")
            except DataLoss as error:
                failure = Failure(Status.DATA_LOSS, str(error))
            if generation.complete:
                yield generation.conclude()
                return
            if len(generation.output) > before:
                crashes = 0
                self._progressed()
            crashes += failure.code in CRASHED
            placed = await self._again(placed, failure, crashes)

    async def _stream(self, placed: Session) -> AsyncGenerator[OutputDelta]:
        """Yield the pieces of one call."""
        generation = self.generation
        verifier = self.fleet.verifiers[placed.verifier]
        generation.begin()
        request = verifier_pb2.GenerateRequest()
        request.CopyFrom(self.request)
        request.epoch = placed.epoch
        request.tokens.extend(generation.prompt)
        request.tokens.extend(generation.output)
        request.output_start = len(generation.prompt)
        call = verifier.generate(request, max(0.0, self.deadline - time.monotonic()))
        verifier.running += 1
        try:
            # It has taken the request, although its first token may be long in coming.
            await call.initial_metadata()
            if not call.done():
                yield OutputDelta()
            async for frame in call:
                yield generation.receive(frame)
        except asyncio.CancelledError:
            # grpc raises this also when the other end cancelled.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise DataLoss("the verifier cancelled the call") from None
        finally:
            verifier.running -= 1
            call.cancel()

    async def _again(self, failed: Session, failure: Failure, crashes: int) -> Session:
        """Find a place for the rest of the output.

        Raises:
            ApiError: the failure is final, or no place was found in time.
        """
        code = failure.code
        self._tries += 1
        # As long as nothing was generated, the client may as well try again.
        limit = MAX_TRIES if self.generation.output else MAX_TRIES_FOR_NOTHING
        if (
            code not in LOST | BUSY | FENCED | CRASHED
            or crashes >= MAX_CRASHES
            or self._tries > limit
        ):
            raise self._final(failure)
        self.moves += 1
        self.metrics.failovers.inc()
        log.warning(
            "placing again",
            verifier=failed.verifier,
            code=code.name,
            reason=failure.details,
            tokens=len(self.generation.output),
        )
        while True:
            placed = await self.placement.place(failed)
            if placed is not None and (placed.verifier != failed.verifier or code in FENCED):
                return placed
            impatient = not self.generation.output and (placed is None or code in BUSY)
            if (
                impatient
                or self.fleet.closed
                or time.monotonic() > min(self._give_up, self.deadline)
            ):
                raise self._final(failure)
            await self._backoff.wait()
            if placed is not None:
                return placed

    def _final(self, failure: Failure) -> errors.ApiError:
        return errors.stopping() if self.fleet.closed else failure.api_error

    def _progressed(self) -> None:
        self._tries = 0
        self._give_up = time.monotonic() + self.failover_timeout
        self._backoff.reset()
