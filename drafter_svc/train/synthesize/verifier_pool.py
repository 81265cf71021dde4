"""Verifiers that write at once: the least busy one is next, a lost one is tried again."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import grpc
import grpc.aio

from drafter_svc.train.synthesize.writer import Turn, Wish
from drafter_svc.train.target.grpc_retry import (
    CHANNEL_OPTIONS,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    REFUSALS,
)
from specwire.errors import DataLoss, WireError
from specwire.message_counter import MessageCounter
from specwire.v1 import verifier_pb2 as pb
from specwire.v1.verifier_pb2_grpc import VerifierServiceStub

logger = logging.getLogger(__name__)

_START_SECONDS = 60.0
_DESCRIBE_SECONDS = 30.0


@dataclass(eq=False)
class _Verifier:
    address: str
    channel: grpc.aio.Channel
    stub: Any
    up: bool = False
    load: int = 0
    pause: float = FIRST_PAUSE
    said: str = ""

    def say(self, reason: str) -> None:
        if reason != self.said:
            logger.warning("verifier %s: %s; it is tried again", self.address, reason)
        self.said = reason


class VerifierPool:
    """One or many verifiers of one target: ``async with Fleet(addresses) as fleet``."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._verifiers = []
        for address in addresses:
            channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
            self._verifiers.append(_Verifier(address, channel, VerifierServiceStub(channel)))
        self._changed = asyncio.Condition()
        self._watches: list[asyncio.Task[None]] = []
        self._error: ValueError | None = None
        self._model: pb.Model | None = None
        self.files: dict[str, bytes] = {}

    @property
    def model(self) -> pb.Model:
        """The target, as the first verifier that answered describes it."""
        assert self._model is not None, "a fleet is entered before it is asked"
        return self._model

    @property
    def places(self) -> int:
        """Generations that all verifiers run at once, with some queued to follow."""
        return len(self._verifiers) * self._limit

    @property
    def _limit(self) -> int:
        return self.model.max_sequences + max(1, self.model.max_sequences // 4)

    async def __aenter__(self) -> Self:
        """Wait for a first verifier. Raises ``ValueError`` if none answers."""
        self._watches = [asyncio.create_task(self._watch(v)) for v in self._verifiers]
        try:
            async with asyncio.timeout(_START_SECONDS), self._changed:
                await self._changed.wait_for(lambda: self._model is not None or self._error)
        except TimeoutError:
            await self.__aexit__()
            reasons = ", ".join(f"{v.address}: {v.said or 'no answer'}" for v in self._verifiers)
            raise ValueError(f"verifiers: none can be reached ({reasons})") from None
        except BaseException:
            await self.__aexit__()
            raise
        if self._error is not None:
            await self.__aexit__()
            raise self._error
        return self

    async def __aexit__(self, *_: object) -> None:
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        for verifier in self._verifiers:
            await verifier.channel.close()

    async def generate(self, wish: Wish) -> Turn:
        """Let a verifier write; what was written before it was lost is kept.

        Raises ``ValueError`` where the request is refused, or a verifier has another target.
        """
        written: list[int] = []
        ends = wish.stop | set(self.model.eos_token_ids)
        while True:
            if written and written[-1] in ends:
                return Turn(written, True)
            if len(written) >= wish.max_tokens:
                return Turn(written, False)
            verifier = await self._choose()
            try:
                ended = await _write(verifier, wish, written)
                verifier.pause = FIRST_PAUSE
                return Turn(written, ended)
            except grpc.aio.AioRpcError as error:
                reason = error.details() or error.code().name
                if error.code() in REFUSALS:
                    raise ValueError(f"{verifier.address}: {reason}") from None
                verifier.say(reason)
                verifier.up = False
            except WireError as error:
                verifier.say(str(error))
                verifier.up = False
            except asyncio.CancelledError:
                _raise_if_cancelled()
                verifier.say("it cancelled a call")
                verifier.up = False
            finally:
                verifier.load -= 1
                await self._notify()

    async def _choose(self) -> _Verifier:
        """Take a place at the least busy verifier, as soon as one has room."""

        def free() -> list[_Verifier]:
            return [v for v in self._verifiers if v.up and v.load < self._limit]

        async with self._changed:
            await self._changed.wait_for(lambda: self._error or free())
            if self._error is not None:
                raise self._error
            verifier = min(free(), key=lambda v: v.load)
            verifier.load += 1
            return verifier

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _watch(self, verifier: _Verifier) -> None:
        """Describe a verifier whenever it is not known to be up."""
        while True:
            try:
                model, files = await _describe(verifier)
            except grpc.aio.AioRpcError as error:
                verifier.say(error.details() or error.code().name)
            except WireError as error:
                verifier.say(str(error))
            except asyncio.CancelledError:
                _raise_if_cancelled()
                verifier.say("it cancelled a call")
            else:
                self._model = self._model or model
                self.files = self.files or files
                if model.fingerprint != self._model.fingerprint:
                    self._error = ValueError(
                        f"verifiers: {verifier.address} serves another target "
                        f"({model.fingerprint[:12]} instead of {self._model.fingerprint[:12]})"
                    )
                verifier.up, verifier.said = True, ""
                await self._notify()
                async with self._changed:
                    await self._changed.wait_for(lambda: not verifier.up)
            await asyncio.sleep(verifier.pause)
            verifier.pause = min(2 * verifier.pause, LONGEST_PAUSE)


def _raise_if_cancelled() -> None:
    """Go on after a CancelledError that grpc raised because the other end cancelled."""
    task = asyncio.current_task()
    if task is None or task.cancelling():
        raise asyncio.CancelledError


async def _describe(verifier: _Verifier) -> tuple[pb.Model, dict[str, bytes]]:
    model: pb.Model | None = None
    files: dict[str, bytearray] = {}
    whole: set[str] = set()
    call = verifier.stub.DescribeModel(pb.DescribeModelRequest(), timeout=_DESCRIBE_SECONDS)
    async for frame in call:
        if frame is None:
            raise DataLoss("its description cannot be decoded.")
        if frame.HasField("model"):
            model = frame.model
            continue
        files.setdefault(frame.file.name, bytearray()).extend(frame.file.data)
        if frame.file.last:
            whole.add(frame.file.name)
    if model is None or set(model.tokenizer_files) != whole:
        raise DataLoss("its description is not whole.")
    return model, {name: bytes(data) for name, data in files.items()}


async def _write(verifier: _Verifier, wish: Wish, written: list[int]) -> bool:
    """Append to ``written`` what a verifier writes; True if it came to its end token."""
    request = pb.GenerateRequest(
        tokens=[*wish.tokens, *written],
        output_start=len(wish.tokens),
        sampling=pb.Sampling(
            temperature=wish.temperature,
            top_p=wish.top_p,
            seed=wish.seed,
            max_tokens=wish.max_tokens,
            stop_token_ids=sorted(wish.stop),
        ),
    )
    numbers = MessageCounter(0)
    call = verifier.stub.Generate(request)
    try:
        async for frame in call:
            if frame is None:
                raise DataLoss("a frame cannot be decoded.")
            numbers.expect(frame.number)
            if frame.HasField("finish"):
                return bool(frame.finish.reason == pb.FINISH_REASON_STOP)
            if frame.tokens.start != len(wish.tokens) + len(written):
                raise DataLoss(f"tokens from {frame.tokens.start} on were not due.")
            written.extend(frame.tokens.ids)
    finally:
        with contextlib.suppress(Exception):
            call.cancel()
    raise DataLoss("the stream ended without its last frame.")
