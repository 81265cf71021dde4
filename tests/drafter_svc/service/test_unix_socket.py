"""Rounds that come by a Unix socket; test_servicer.py has what they share with gRPC."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from specwire import unix_frames
from specwire.unix_frames import connect
from specwire.v1 import drafter_pb2 as pb
from tests.support.drafter_fixtures import Parts, random_text
from tests.support.served_drafter import Running, Servers, check, hello, refusal


@pytest.fixture
async def near() -> AsyncIterator[Running]:
    """A drafter on this host."""
    async with Servers(same_host=True) as servers:
        yield await servers.start(Parts())


async def test_a_closed_socket_ends_its_link_and_frees_what_it_had(near: Running) -> None:
    verifier, bystander = await near.link(1), await near.link(2)
    text = random_text(20, 1)
    await verifier.ask(text.extend(5, 0, 9, 4))
    assert verifier.frames is not None
    verifier.frames.close()
    assert (await refusal(verifier.call))[0] == grpc.StatusCode.UNAVAILABLE
    assert near.service.links == 1
    check(near, (await bystander.ask(text.extend(5, 0, 9, 4))).drafts[0], text, 9, 4)
    await near.link(1)


async def test_the_end_of_the_stream_closes_the_socket(near: Running) -> None:
    verifier = await near.link()
    assert verifier.frames is not None
    verifier.call.cancel()
    assert await asyncio.to_thread(verifier.frames.receive, pb.DraftResponse) is None


async def test_a_socket_belongs_to_an_open_link_without_one(near: Running) -> None:
    verifier = await near.link(7)
    name = (await near.stub().Describe(pb.DescribeRequest())).same_host
    for request in (
        pb.DraftRequest(hello=hello(link_id=7)),  # it has one
        pb.DraftRequest(hello=hello(link_id=8)),
        pb.DraftRequest(round=pb.Round(number=1)),
    ):
        stranger = connect(name)
        assert stranger is not None
        stranger.send(request)
        assert await asyncio.to_thread(stranger.receive, pb.DraftResponse) is None
    text = random_text(20, 1)
    check(near, (await verifier.ask(text.extend(5, 0, 9, 4))).drafts[0], text, 9, 4)


async def test_drained_it_takes_no_more(near: Running) -> None:
    name = (await near.stub().Describe(pb.DescribeRequest())).same_host
    await near.service.drain()
    assert connect(name) is None


async def test_a_system_without_such_sockets_leaves_rounds_to_grpc(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("not here")

    monkeypatch.setattr(unix_frames, "serve", refuse)
    async with Servers(same_host=True) as servers:
        running = await servers.start(Parts())
        described = await running.stub().Describe(pb.DescribeRequest())
        assert described.same_host == ""
