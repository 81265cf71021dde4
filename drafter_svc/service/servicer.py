"""DrafterService over gRPC: decodes, calls the engine, encodes."""

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Coroutine, Sequence
from functools import partial
from typing import Any

import grpc.aio
from torch import Tensor

from drafter_svc.engine.engine import Engine
from drafter_svc.model.feature_projection import ProjectionWeights
from drafter_svc.service.links import Link, Outbox
from speckernels.tensor_codec import unpack
from specserve import logs
from specserve.server import ServiceServer
from specwire import codec, handshake, unix_frames
from specwire.errors import Incompatible, InvalidRequest, Unavailable
from specwire.limits import MAX_ROUND_BYTES
from specwire.message_counter import MessageCounter
from specwire.messages import AppendEntries, CatchUpAck, Proposals
from specwire.unix_frames import FramedSocket
from specwire.v1 import drafter_pb2 as pb
from specwire.v1 import drafter_pb2_grpc

NAME = pb.DESCRIPTOR.services_by_name["DrafterService"].full_name

# Entries beyond the length that is served are refused by the engine, sequence by sequence.
_ANY_LENGTH = 1 << 32

Context = grpc.aio.ServicerContext[Any, Any]

_log = logs.get(__name__)


class DrafterServicer(drafter_pb2_grpc.DrafterServiceServicer):
    """Serves one engine to any number of verifiers. Lives on one event loop."""

    def __init__(
        self,
        engine: Engine,
        description: pb.DescribeResponse,
        *,
        same_host: bool = False,
        projection: ProjectionWeights | None = None,
    ) -> None:
        """Take the engine, what the drafter is, and whether rounds may come by a Unix socket.

        Features may come projected by `projection`, where there is one.
        """
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._description = pb.DescribeResponse()
        self._description.CopyFrom(description)
        self._description.max_round_bytes = MAX_ROUND_BYTES
        self._listener: socket.socket | None = None
        self._width = len(description.aux_layer_ids) * description.target_hidden_size
        self._projection = projection
        if projection is not None:
            self._description.projected_width = projection.width
        self._shape = handshake.announced(codec.decode_welcome(description))
        self._links: dict[int, Link] = {}
        self._draining = False
        if same_host:
            self._listen()

    def server(self) -> ServiceServer:
        """A server of it, not started, which takes what it announces."""
        register = drafter_pb2_grpc.add_DrafterServiceServicer_to_server
        return ServiceServer(NAME, lambda to: register(self, to), max_bytes=MAX_ROUND_BYTES)

    @property
    def links(self) -> int:
        """Verifiers connected."""
        return len(self._links)

    async def drain(self) -> None:
        """Answer what has come, then end all streams; verifiers go on without this drafter."""
        self._draining = True
        if self._listener is not None:
            unix_frames.stop(self._listener)
        await self._flushed()
        for link in self._links.values():
            link.end(Unavailable("The drafter is draining."))

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        return self._description

    async def Draft(
        self, requests: AsyncIterator[pb.DraftRequest], context: Context
    ) -> AsyncIterator[pb.DraftResponse]:
        link = self._open(_hello(await anext(requests, None)))
        reader = asyncio.create_task(self._read(link.proposals, self._rounds(requests, link)))
        try:
            yield pb.DraftResponse(welcome=self._description)
            async for answer in link.proposals:
                yield link.encode(answer)
        finally:
            reader.cancel()
            self._close(link)

    async def Bulk(
        self, requests: AsyncIterator[pb.BulkRequest], context: Context
    ) -> AsyncIterator[pb.BulkResponse]:
        link = self._links.get(_hello(await anext(requests, None)).link_id)
        if link is None:
            raise InvalidRequest("hello: link_id names no open Draft stream.")
        if link.acks is not None:
            raise InvalidRequest("hello: the link has a Bulk stream already.")
        acks = link.acks = Outbox()
        reader = asyncio.create_task(self._read(acks, self._extends(requests, link)))
        try:
            yield pb.BulkResponse(welcome=self._description)
            async for ack in acks:
                yield codec.encode_ack(ack)
        finally:
            reader.cancel()
            link.acks = None

    async def Projection(
        self, request: pb.ProjectionRequest, context: Context
    ) -> AsyncIterator[pb.ProjectionResponse]:
        if self._projection is None:
            raise Incompatible("The drafter takes features as they were captured only.")
        if request.checkpoint_hash != (own := self._description.checkpoint_hash):
            raise Incompatible(
                f"projection: checkpoint_hash is {own[:12]} here, {request.checkpoint_hash[:12]} "
                "was asked for."
            )
        for message in self._projection.messages():
            yield message

    def _listen(self) -> None:
        name = f"holdcourse-{secrets.token_hex(16)}"
        try:
            self._listener = unix_frames.serve(name, self._serve)
        except OSError as error:
            _log.warning("rounds from this host come by gRPC", reason=str(error))
            return
        self._description.same_host = name

    async def _read(self, outbox: Outbox[Any], reading: Coroutine[Any, Any, None]) -> None:
        """Read a stream to its end; what stops it ends the answers as well."""
        try:
            await reading
            await self._flushed()
            outbox.end()
        except Exception as error:
            outbox.end(error)

    async def _rounds(self, requests: AsyncIterator[pb.DraftRequest], link: Link) -> None:
        numbering = MessageCounter(1)
        async for request in requests:
            self._round(request, link, numbering)

    def _round(self, request: pb.DraftRequest, link: Link, numbering: MessageCounter) -> None:
        if request.WhichOneof("message") != "round":
            raise InvalidRequest("draft: only rounds may follow the hello.")
        message = request.round
        numbering.expect(message.number)
        extends = [self._decode(extend) for extend in message.extends]
        features = self._features(message, extends)
        self._engine.round(link.id, extends, features, tuple(message.closes))

    def _serve(self, connection: FramedSocket) -> None:
        """Take the rounds of a link from the same host, until either end closes or one is bad."""
        link: Link | None = None
        error: Exception = Unavailable("The link's socket was closed.")
        try:
            link = self._links.get(_hello(connection.receive(pb.DraftRequest)).link_id)
            if link is None or link.frames is not None:
                raise InvalidRequest("hello: link_id names no Draft stream without a socket.")
            link.frames = connection
            numbering = MessageCounter(1)
            while (request := connection.receive(pb.DraftRequest)) is not None:
                self._round(request, link, numbering)
        except Exception as caught:
            error = caught
        if link is None or link.frames is not connection:
            connection.close()
        elif self._links.get(link.id) is link:
            self._loop.call_soon_threadsafe(link.end, error)

    async def _extends(self, requests: AsyncIterator[pb.BulkRequest], link: Link) -> None:
        async for request in requests:
            if request.WhichOneof("message") != "extend":
                raise InvalidRequest("bulk: only extends may follow the hello.")
            extend = self._decode(request.extend.extend)
            features = self._features(request.extend, [extend])
            if features is None or extend.wish:
                raise InvalidRequest("bulk: an extend must have tokens, and no wish for a draft.")
            await link.bulk_room.acquire()
            self._engine.bulk(link.id, extend, features)

    def _decode(self, message: pb.Extend) -> AppendEntries:
        limit = self._description.max_draft_tokens
        for name in ("draft_tokens", "lookup_tokens"):
            if (asked := getattr(message, name)) > limit:
                raise InvalidRequest(f"extend: {name} must be at most {limit}, {asked} were asked.")
        return codec.decode_extend(message, self._description.vocab_size, _ANY_LENGTH)

    def _features(
        self, message: pb.Round | pb.BulkExtend, extends: Sequence[AppendEntries]
    ) -> Tensor | None:
        """The rows of all extends, checked against their tokens; None for no rows."""
        rows = sum(len(extend.tokens) for extend in extends)
        if not rows and not message.HasField("features"):
            return None
        width = self._description.projected_width if message.projected else self._width
        if not width:
            raise InvalidRequest("features: projected ones are not announced, and not taken.")
        features = unpack(message.features, "features")
        if features.shape != (rows, width):
            raise InvalidRequest(
                f"features: shape must be [{rows}, {width}], is {list(features.shape)}."
            )
        return features if rows else None

    def _open(self, hello: pb.Hello) -> Link:
        target = handshake.TargetIdentity(
            hello.target_fingerprint, hello.vocab_size, hello.hidden_size
        )
        handshake.check(target, self._shape)
        if self._draining:
            raise Unavailable("The drafter is draining.")
        if hello.link_id in self._links:
            raise InvalidRequest("hello: link_id is that of an open link.")
        link = self._links[hello.link_id] = Link(hello.link_id)
        self._engine.open_link(link.id, partial(self._pass_on, link))
        _log.info("link opened", link=link.id)
        return link

    def _close(self, link: Link) -> None:
        del self._links[link.id]
        if link.frames is not None:
            link.frames.close()
        link.end(Unavailable("The link's Draft stream has ended."))
        self._engine.close_link(link.id)
        _log.info("link closed", link=link.id)

    def _pass_on(self, link: Link, answer: Proposals | CatchUpAck) -> None:
        """Take an answer from the engine's thread."""
        if link.frames is not None and isinstance(answer, Proposals):
            link.frames.send(link.encode(answer))
        else:
            self._loop.call_soon_threadsafe(link.deliver, answer)

    async def _flushed(self) -> None:
        """Wait until the engine has answered all that it was given."""
        done = asyncio.Event()
        self._engine.flush(partial(self._loop.call_soon_threadsafe, done.set))
        await done.wait()


def _hello(first: pb.DraftRequest | pb.BulkRequest | None) -> pb.Hello:
    if first is None or first.WhichOneof("message") != "hello":
        raise InvalidRequest("hello: must be the first message of the stream.")
    return first.hello
