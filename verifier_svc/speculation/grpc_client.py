"""The drafter at the other end of gRPC, as a DraftPort."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import TypeVar

import grpc.aio
import torch

from speckernels.tensor_codec import pack
from specwire import codec, handshake, limits
from specwire.errors import DataLoss, WireError
from specwire.handshake import TargetIdentity
from specwire.limits import MAX_ROUND_BYTES
from specwire.message_counter import MessageCounter
from specwire.messages import AppendEntries, DrafterDown, DrafterInfo, DrafterUp, DraftEvent
from specwire.v1 import drafter_pb2 as pb
from specwire.v1.drafter_pb2_grpc import DrafterServiceStub
from verifier_svc.speculation.draft_stream import ROUND_ROWS
from verifier_svc.speculation.feature_projection import Projector
from verifier_svc.speculation.round_messages import round_messages
from verifier_svc.speculation.unix_client import UnixLink

logger = logging.getLogger(__name__)

_Message = TypeVar("_Message")

_OPTIONS = [
    *limits.message_limits(MAX_ROUND_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]
# A connection of its own, so that a round never queues behind bulk rows.
_BULK_OPTIONS = [*_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
_RETRY_SECONDS = 0.5
_REFUSED_RETRY_SECONDS = 5.0


class DrafterClient:
    """Keeps a link to one drafter up. `round` and `bulk` may be called from any thread."""

    def __init__(
        self,
        address: str,
        shape: TargetIdentity,
        devices: Collection[str] = (),
        projector: Projector | None = None,
    ) -> None:
        """Take HOST:PORT, the target, its devices' names for the log, and what may project."""
        self._address = address
        self._shape = shape
        self._devices = devices
        self._projector = projector or Projector(None)
        self._loop = asyncio.get_running_loop()
        self._deliver: Callable[[DraftEvent], None] = lambda event: None
        self._rounds: asyncio.Queue[pb.DraftRequest] = asyncio.Queue()
        self._bulks: asyncio.Queue[pb.BulkRequest] = asyncio.Queue()
        self._numbers = MessageCounter(1)
        self._link = 0
        # Bytes of a message of rounds at most.
        self._most = MAX_ROUND_BYTES
        # For rounds, where the drafter is on this host.
        self._near: UnixLink | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, deliver: Callable[[DraftEvent], None]) -> None:
        """Connect, and deliver events from other threads than the caller's from now on."""
        self._deliver = deliver
        self._task = asyncio.create_task(self._keep_linked())

    async def close(self) -> None:
        """Drop the link."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def round(
        self,
        link: int,
        extends: Sequence[AppendEntries],
        features: Sequence[torch.Tensor],
        closes: Sequence[int],
    ) -> None:
        """Send one round: `features[i]` is [len(extends[i].tokens), feature width]."""
        features, projected = self._projector.form(link, features)
        near = self._near if self._near is not None and self._near.link == link else None
        for request in round_messages(extends, features, closes, self._most, projected=projected):
            if near is not None:
                near.send(request)
            else:
                self._loop.call_soon_threadsafe(self._put_round, link, request)

    def bulk(self, link: int, extend: AppendEntries, features: torch.Tensor) -> None:
        """Send rows beyond a round's worth; an Ack answers."""
        rows, projected = self._projector.form(link, [features])
        request = pb.BulkRequest()
        request.extend.extend.CopyFrom(codec.encode_extend(extend))
        request.extend.projected = projected
        pack(*rows, into=request.extend.features)
        self._loop.call_soon_threadsafe(self._put_bulk, link, request)

    def _put_round(self, link: int, request: pb.DraftRequest) -> None:
        if link == self._link:
            request.round.number = self._numbers.take()
            self._rounds.put_nowait(request)

    def _put_bulk(self, link: int, message: pb.BulkRequest) -> None:
        if link == self._link:
            self._bulks.put_nowait(message)

    async def _keep_linked(self) -> None:
        said = ""
        while True:
            pause = _RETRY_SECONDS
            try:
                await self._run_link()
                reason = "the drafter closed the link"
            except grpc.aio.AioRpcError as error:
                reason = error.details() or error.code().name
                if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                    pause = _REFUSED_RETRY_SECONDS
            except WireError as error:
                reason, pause = str(error), _REFUSED_RETRY_SECONDS
            self._deliver(DrafterDown(reason))
            if reason != said:
                logger.warning("no drafter, decoding plainly: %s", reason)
                said = reason
            await asyncio.sleep(pause)

    async def _run_link(self) -> None:
        """Shake hands, then carry messages until either stream ends."""
        self._link = secrets.randbits(63) | 1
        self._rounds, self._bulks, self._numbers = (
            asyncio.Queue(),
            asyncio.Queue(),
            MessageCounter(1),
        )
        hello = pb.Hello(
            link_id=self._link,
            target_fingerprint=self._shape.fingerprint,
            vocab_size=self._shape.vocab_size,
            hidden_size=self._shape.hidden_size,
        )
        async with (
            grpc.aio.insecure_channel(self._address, options=_OPTIONS) as channel,
            grpc.aio.insecure_channel(self._address, options=_BULK_OPTIONS) as bulk_channel,
        ):
            drafts = DrafterServiceStub(channel).Draft(self._draft_requests(hello))
            answers = aiter(drafts)
            announced = _whole(await anext(answers, None)).welcome
            welcome = self._check(announced)
            bulk = DrafterServiceStub(bulk_channel).Bulk(self._bulk_requests(hello))
            acks = aiter(bulk)
            _whole(await anext(acks, None))
            await self._projector.adopt(self._link, DrafterServiceStub(bulk_channel), announced)
            near = self._near = UnixLink.reach(announced.same_host, hello)
            way = "gRPC" if near is None else "a Unix socket"
            logger.info("drafter linked by %s: checkpoint %s", way, welcome.checkpoint_hash[:12])
            if welcome.device.startswith("cuda") and welcome.device in self._devices:
                logger.info("the drafter is on the target's GPU: they take turns on it")
            self._deliver(DrafterUp(self._link, welcome))
            readers = [
                asyncio.create_task(self._read_drafts(answers)),
                asyncio.create_task(self._read_acks(acks)),
            ]
            if near is not None:
                readers.append(asyncio.create_task(asyncio.to_thread(self._read_near, near)))
            try:
                done, _ = await asyncio.wait(readers, return_when=asyncio.FIRST_COMPLETED)
                for reader in done:
                    reader.result()
            finally:
                self._near = None
                if near is not None:
                    near.close()
                    await asyncio.wait(readers[2:])
                for reader in readers:
                    reader.cancel()
                await asyncio.gather(*readers, return_exceptions=True)

    async def _draft_requests(self, hello: pb.Hello) -> AsyncIterator[pb.DraftRequest]:
        yield pb.DraftRequest(hello=hello)
        rounds = self._rounds
        while True:
            yield await rounds.get()

    async def _bulk_requests(self, hello: pb.Hello) -> AsyncIterator[pb.BulkRequest]:
        yield pb.BulkRequest(hello=hello)
        bulks = self._bulks
        while True:
            yield await bulks.get()

    async def _read_drafts(self, answers: AsyncIterator[pb.DraftResponse]) -> None:
        numbers = MessageCounter(1)
        async for answer in answers:
            self._take(_whole(answer), numbers)

    def _read_near(self, near: UnixLink) -> None:
        numbers = MessageCounter(1)
        while (answer := near.receive()) is not None:
            self._take(answer, numbers)

    def _take(self, answer: pb.DraftResponse, numbers: MessageCounter) -> None:
        numbers.expect(answer.proposals.number)
        self._deliver(codec.decode_proposals(answer.proposals, self._shape.vocab_size))

    async def _read_acks(self, acks: AsyncIterator[pb.BulkResponse]) -> None:
        async for ack in acks:
            self._deliver(codec.decode_ack(_whole(ack).ack))

    def _check(self, message: pb.DescribeResponse) -> DrafterInfo:
        welcome = codec.decode_welcome(message)
        handshake.check(self._shape, handshake.announced(welcome))
        handshake.check_room(welcome, ROUND_ROWS)
        self._most = min(welcome.max_round_bytes, MAX_ROUND_BYTES)
        return welcome


def _whole(message: _Message | None) -> _Message:
    """A streamed message; None stands for one that could not be decoded, or for none at all."""
    if message is None:
        raise DataLoss("a message of the drafter is missing or could not be decoded.")
    return message
