"""A tiny drafter served on loopback, and verifiers that ask it by gRPC or from the same host."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest
import torch

from drafter_svc.engine.engine import Engine
from drafter_svc.model.feature_projection import ProjectionWeights
from drafter_svc.service.servicer import DrafterServicer
from speckernels.tensor_codec import pack
from specwire import codec
from specwire.messages import AppendEntries, Draft, Proposals
from specwire.unix_frames import FramedSocket, connect
from specwire.v1 import drafter_pb2 as pb
from specwire.v1 import drafter_pb2_grpc
from tests.support.drafter_fixtures import DESCRIPTION, Parts, Text, greedy

HELLO = pb.Hello(link_id=7, target_fingerprint="feed", vocab_size=128, hidden_size=16)

Sent = tuple[AppendEntries, torch.Tensor]


@dataclass
class Running:
    """A served tiny drafter and a channel to it."""

    parts: Parts
    service: DrafterServicer
    channel: grpc.aio.Channel
    port: int
    same_host: bool

    def stub(self) -> Any:
        return drafter_pb2_grpc.DrafterServiceStub(self.channel)

    async def link(self, link: int = 7) -> "Verifier":
        verifier = Verifier(self, link, self.stub().Draft())
        await verifier.call.write(pb.DraftRequest(hello=hello(link_id=link)))
        first = await verifier.call.read()
        assert without_service(first.welcome) == DESCRIPTION
        if self.same_host:
            verifier.frames = connect(first.welcome.same_host)
            await verifier.write(pb.DraftRequest(hello=hello(link_id=link)))
        return verifier


@dataclass
class Verifier:
    """The other end of one link."""

    running: Running
    link: int
    call: Any
    number: int = field(default=0)
    frames: FramedSocket | None = None

    async def write(self, request: pb.DraftRequest) -> None:
        if self.frames is None:
            await self.call.write(request)
        else:
            self.frames.send(request)

    async def send(self, *sent: Sent, closes: Sequence[int] = (), projected: bool = False) -> None:
        self.number += 1
        message = pb.Round(
            number=self.number,
            extends=[codec.encode_extend(e) for e, _ in sent],
            closes=closes,
            projected=projected,
        )
        if sent:
            message.features.CopyFrom(pack(torch.cat([rows for _, rows in sent])))
        await self.write(pb.DraftRequest(round=message))

    async def receive(self) -> Proposals:
        if self.frames is None:
            message = await self.call.read()
        else:
            message = await asyncio.to_thread(self.frames.receive, pb.DraftResponse)
        assert isinstance(message, pb.DraftResponse), message
        return codec.decode_proposals(message.proposals, 128)

    async def ask(self, *sent: Sent, projected: bool = False) -> Proposals:
        await self.send(*sent, projected=projected)
        return await self.receive()

    async def bulk(self) -> Any:
        call = self.running.stub().Bulk()
        await call.write(pb.BulkRequest(hello=hello(link_id=self.link)))
        assert without_service((await call.read()).welcome) == DESCRIPTION
        return call


def without_service(welcome: pb.DescribeResponse) -> pb.DescribeResponse:
    """What a drafter announces, but for what its service adds."""
    plain = pb.DescribeResponse()
    plain.CopyFrom(welcome)
    plain.ClearField("same_host")
    plain.ClearField("max_round_bytes")
    plain.ClearField("projected_width")
    return plain


def hello(**changes: Any) -> pb.Hello:
    message = pb.Hello()
    message.CopyFrom(HELLO)
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def check(running: Running, draft: Draft, text: Text, base: int, length: int) -> None:
    assert draft.base == base
    assert list(draft.tokens) == running.parts.slow_draft(text, base, length, greedy).tokens


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while await call.read() is not grpc.aio.EOF:
            pass
    return caught.value.code(), caught.value.details() or ""


class Servers:
    """Starts drafters, and stops them all at its end."""

    def __init__(self, same_host: bool) -> None:
        self._same_host = same_host
        self._stops: list[Callable[[], Awaitable[None]]] = []

    async def __aenter__(self) -> "Servers":
        return self

    async def start(self, parts: Parts, projection: ProjectionWeights | None = None) -> Running:
        engine = Engine(parts.worker, on_failure=lambda: pytest.fail("engine failed"))
        engine.start()
        service = DrafterServicer(
            engine, DESCRIPTION, same_host=self._same_host, projection=projection
        )
        server = service.server()
        port = await server.start("127.0.0.1:0")
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")

        async def stop() -> None:
            await channel.close()
            await service.drain()
            await server.stop(0)
            engine.stop()

        self._stops.append(stop)
        return Running(parts, service, channel, port, self._same_host)

    async def __aexit__(self, *_: object) -> None:
        for stop in self._stops:
            await stop()
