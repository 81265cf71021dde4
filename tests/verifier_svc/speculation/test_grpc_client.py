"""The link to a drafter over real gRPC on loopback, the drafter scripted."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc.aio
import pytest
import torch

from speckernels.tensor_codec import pack, unpack
from specwire import codec, unix_frames
from specwire.handshake import TargetIdentity
from specwire.messages import (
    AppendEntries,
    CatchUpAck,
    Draft,
    DraftBudget,
    DraftCost,
    DrafterDown,
    DrafterUp,
    DraftEvent,
    Proposals,
)
from specwire.unix_frames import FramedSocket
from specwire.v1 import drafter_pb2 as pb
from specwire.v1.drafter_pb2_grpc import (
    DrafterServiceServicer,
    add_DrafterServiceServicer_to_server,
)
from tests.support.ports import free_port
from verifier_svc.speculation import grpc_client
from verifier_svc.speculation.feature_projection import Projector
from verifier_svc.speculation.grpc_client import DrafterClient

SHAPE = TargetIdentity("f" * 64, 97, 32)
WELCOME = pb.DescribeResponse(
    checkpoint_hash="c", target_fingerprint="f" * 64, aux_layer_ids=[1, 2], target_hidden_size=32,
    vocab_size=97, draft_vocab_size=97, max_length=500, max_draft_tokens=8,
)  # fmt: skip


class Drafter(DrafterServiceServicer):
    """Answers every round with `proposals(number)`, every bulk message with its Ack."""

    def __init__(self) -> None:
        self.welcome = pb.DescribeResponse()
        self.welcome.CopyFrom(WELCOME)
        self.hellos: list[pb.Hello] = []
        self.rounds: list[pb.Round] = []
        self.sockets: list[FramedSocket] = []
        self.bulks: list[pb.BulkExtend] = []
        self.silent = False
        self.projection: list[pb.ProjectionResponse] = []
        self.proposals: Callable[[int], pb.DraftResponse] = lambda number: codec.encode_proposals(
            number, [Draft(1, 4, (5, 6), (0.5, 0.25))], [], DraftCost(1, 2)
        )

    async def Describe(  # noqa: N802
        self, request: pb.DescribeRequest, context: Any
    ) -> pb.DescribeResponse:
        return self.welcome

    async def Draft(  # noqa: N802
        self, requests: AsyncIterator[pb.DraftRequest], context: Any
    ) -> AsyncIterator[pb.DraftResponse]:
        self.hellos.append((await anext(requests)).hello)
        if self.silent:
            return
        yield pb.DraftResponse(welcome=self.welcome)
        async for request in requests:
            yield self.answer(request)

    def take(self, socket: FramedSocket) -> None:
        """Serve a link by a socket, on a thread."""
        first = socket.receive(pb.DraftRequest)
        assert first is not None
        self.hellos.append(first.hello)
        self.sockets.append(socket)
        while (request := socket.receive(pb.DraftRequest)) is not None:
            socket.send(self.answer(request))

    def answer(self, request: pb.DraftRequest) -> pb.DraftResponse:
        self.rounds.append(request.round)
        return self.proposals(request.round.number)

    async def Bulk(  # noqa: N802
        self, requests: AsyncIterator[pb.BulkRequest], context: Any
    ) -> AsyncIterator[pb.BulkResponse]:
        self.hellos.append((await anext(requests)).hello)
        yield pb.BulkResponse(welcome=self.welcome)
        async for request in requests:
            self.bulks.append(request.extend)
            extend = request.extend.extend
            stop = extend.start + len(extend.tokens)
            yield codec.encode_ack(CatchUpAck(extend.seq, stop, stop, len(extend.tokens)))

    async def Projection(  # noqa: N802
        self, request: pb.ProjectionRequest, context: Any
    ) -> AsyncIterator[pb.ProjectionResponse]:
        for message in self.projection:
            yield message


class Events:
    """What the engine would be told."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[DraftEvent] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def post(self, event: DraftEvent) -> None:
        """Take an event from any thread."""
        self._loop.call_soon_threadsafe(self.queue.put_nowait, event)

    async def next(self, kind: type[Any]) -> Any:
        """The next event of a kind; what comes before it is dropped."""
        async with asyncio.timeout(10):
            while not isinstance(event := await self.queue.get(), kind):
                pass
        return event


@pytest.fixture(params=[False, True], ids=["gRPC", "same host"])
def drafter(request: pytest.FixtureRequest) -> Iterator[Drafter]:
    """A drafter that takes rounds by gRPC alone, or by a socket as well."""
    drafter = Drafter()
    if not request.param:
        yield drafter
        return
    drafter.welcome.same_host = f"test-{secrets.token_hex(8)}"
    listener = unix_frames.serve(drafter.welcome.same_host, drafter.take)
    yield drafter
    unix_frames.stop(listener)


@asynccontextmanager
async def serving(drafter: Drafter, port: int) -> AsyncIterator[grpc.aio.Server]:
    server = grpc.aio.server()
    add_DrafterServiceServicer_to_server(drafter, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)


Connect = Callable[..., AbstractAsyncContextManager[tuple[DrafterClient, Events]]]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    monkeypatch.setattr(grpc_client, "_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(grpc_client, "_REFUSED_RETRY_SECONDS", 0.05)

    @asynccontextmanager
    async def connected(
        port: int, projector: Projector | None = None
    ) -> AsyncIterator[tuple[DrafterClient, Events]]:
        client, events = DrafterClient(f"127.0.0.1:{port}", SHAPE, projector=projector), Events()
        client.start(events.post)
        try:
            yield client, events
        finally:
            await client.close()

    return connected


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_rounds_bulk_rows_and_their_answers_travel(
    connect: Connect, drafter: Drafter
) -> None:
    port = free_port()
    async with serving(drafter, port), connect(port) as (client, events):
        linked = await events.next(DrafterUp)
        assert linked.welcome == codec.decode_welcome(WELCOME)
        sockets = int(bool(drafter.welcome.same_host))
        await until(lambda: len(drafter.hellos) == 2 + sockets)
        assert len(drafter.sockets) == sockets
        hello = pb.Hello(
            link_id=linked.link, target_fingerprint="f" * 64, vocab_size=97, hidden_size=32
        )
        assert drafter.hellos == [hello] * (2 + sockets)
        rows = torch.randn(3, 64)
        extend, other = (
            AppendEntries(1, 4, (7, 8), DraftBudget(3, 5)),
            AppendEntries(2, 9, (6,), DraftBudget(1)),
        )
        client.round(linked.link, [extend, other], [rows[:2], rows[2:]], [44])
        assert await events.next(Proposals) == Proposals(
            (Draft(1, 4, (5, 6), (0.5, 0.25)),), (), DraftCost(1, 2)
        )
        (round_,) = drafter.rounds
        assert (round_.number, list(round_.closes)) == (1, [44])
        assert [codec.decode_extend(e, 97, 500) for e in round_.extends] == [extend, other]
        assert torch.equal(unpack(round_.features, "features"), rows)
        client.bulk(linked.link, AppendEntries(1, 6, (1, 2, 3)), rows)
        assert await events.next(CatchUpAck) == CatchUpAck(1, 9, 9, 3)
        client.round(linked.link, (), (), (45,))
        await until(lambda: len(drafter.rounds) == 2)
        assert drafter.rounds[1].number == 2


def project_by(drafter: Drafter, weight: torch.Tensor) -> None:
    """Announce a projection [H, 64] without norms, and serve it."""
    drafter.welcome.projected_width = len(weight)
    rows = pack(weight)
    drafter.projection = [
        pb.ProjectionResponse(form=pb.ProjectionForm(eps=1e-5)),
        pb.ProjectionResponse(rows=rows),
        pb.ProjectionResponse(digest=hashlib.sha256(rows.data).digest()),
    ]


@pytest.mark.parametrize("projects", [True, False])
async def test_every_message_says_whether_its_rows_are_projected(
    connect: Connect, drafter: Drafter, projects: bool
) -> None:
    port, weight, rows = free_port(), torch.randn(32, 64), torch.randn(3, 64)
    project_by(drafter, weight)
    projector = Projector(torch.device("cpu")) if projects else None
    async with serving(drafter, port), connect(port, projector) as (client, events):
        linked = await events.next(DrafterUp)
        extends = (
            AppendEntries(1, 4, (7, 8), DraftBudget(3, 5)),
            AppendEntries(2, 9, (6,), DraftBudget(1)),
        )
        client.round(linked.link, extends, [rows[:2], rows[2:]], [])
        assert await events.next(Proposals)
        client.bulk(linked.link, AppendEntries(1, 6, (1, 2, 3)), rows)
        assert await events.next(CatchUpAck)
        client.round(linked.link, (), (), (45,))
        await until(lambda: len(drafter.rounds) == 2)
    expected = rows @ weight.T if projects else rows
    for message in (drafter.rounds[0], drafter.bulks[0]):
        assert message.projected is projects
        torch.testing.assert_close(unpack(message.features, "features"), expected)
    assert not drafter.rounds[1].projected, "it has no rows"


async def test_a_projection_that_is_damaged_ends_the_link_and_a_new_one_is_made(
    connect: Connect, drafter: Drafter
) -> None:
    port = free_port()
    project_by(drafter, torch.randn(32, 64))
    projection, drafter.projection = drafter.projection, drafter.projection[:2]
    async with (
        serving(drafter, port),
        connect(port, Projector(torch.device("cpu"))) as (client, events),
    ):
        reason = (await events.next(DrafterDown)).reason
        assert reason == "projection: the weights that came are not those that were sent."
        drafter.projection = projection
        linked = await events.next(DrafterUp)
        client.round(
            linked.link, [AppendEntries(1, 4, (7,), DraftBudget(3))], [torch.randn(1, 64)], []
        )
        assert await events.next(Proposals)
        assert drafter.rounds[0].projected


async def test_what_is_meant_for_an_earlier_link_is_dropped(
    connect: Connect, drafter: Drafter
) -> None:
    port = free_port()
    async with serving(drafter, port), connect(port) as (client, events):
        linked = await events.next(DrafterUp)
        client.round(linked.link - 1, (), (), (1,))
        client.bulk(linked.link - 1, AppendEntries(1, 6, (1,)), torch.zeros(1, 64))
        client.round(linked.link, (), (), (2,))
        await until(lambda: drafter.rounds)
        assert list(drafter.rounds[0].closes) == [2]
        assert drafter.bulks == []


async def test_a_drafter_that_dies_is_linked_again_under_a_new_id(connect: Connect) -> None:
    port = free_port()
    async with connect(port) as (_, events):
        assert await events.next(DrafterDown)  # nobody is there yet
        links = []
        for _ in range(2):
            async with serving(Drafter(), port):
                links.append((await events.next(DrafterUp)).link)
            assert await events.next(DrafterDown)
        assert links[0] != links[1]


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [("vocab_size", 98, "vocab_size"), ("target_hidden_size", 33, "hidden_size"),
     ("target_fingerprint", "a" * 64, "fingerprint")],
)  # fmt: skip
async def test_a_drafter_for_another_target_is_refused_in_one_sentence(
    connect: Connect, field: str, value: object, word: str
) -> None:
    drafter, port = Drafter(), free_port()
    setattr(drafter.welcome, field, value)
    async with serving(drafter, port), connect(port) as (_, events):
        reason = (await events.next(DrafterDown)).reason
        assert reason.startswith("The drafter was made for another target: ")
        assert word in reason
        setattr(drafter.welcome, field, getattr(WELCOME, field))
        await events.next(DrafterUp)  # an upgrade at the same address is found


def skipped_number(drafter: Drafter) -> None:
    proposals = drafter.proposals
    drafter.proposals = lambda number: proposals(number + 1)


def wrong_frame(drafter: Drafter) -> None:
    drafter.proposals = lambda number: pb.DraftResponse(welcome=WELCOME)


def missing_confidence(drafter: Drafter) -> None:
    def proposals(number: int) -> pb.DraftResponse:
        message = codec.encode_proposals(number, [Draft(1, 4, (5,), (0.5,))], [], DraftCost())
        message.proposals.drafts[0].confidence.pop()
        return message

    drafter.proposals = proposals


@pytest.mark.parametrize("fault", [skipped_number, wrong_frame, missing_confidence])
async def test_a_broken_answer_ends_the_link_and_a_new_one_is_made(
    connect: Connect, drafter: Drafter, fault: Callable[[Drafter], None]
) -> None:
    port = free_port()
    fault(drafter)
    async with serving(drafter, port), connect(port) as (client, events):
        first = await events.next(DrafterUp)
        client.round(first.link, (), (), (1,))
        await events.next(DrafterDown)
        assert (await events.next(DrafterUp)).link != first.link


@pytest.mark.parametrize("drafter", [True], indirect=True)
class TestSameHost:
    async def test_a_socket_that_closes_ends_the_link_and_a_new_one_is_made(
        self, connect: Connect, drafter: Drafter
    ) -> None:
        port = free_port()
        async with serving(drafter, port), connect(port) as (client, events):
            first = await events.next(DrafterUp)
            await until(lambda: drafter.sockets)
            drafter.sockets[0].close()
            await events.next(DrafterDown)
            client.round(first.link, (), (), (1,))  # for nobody any more
            again = await events.next(DrafterUp)
            client.round(again.link, (), (), (2,))
            assert await events.next(Proposals)
            assert [list(each.closes) for each in drafter.rounds] == [[2]]

    async def test_the_end_of_the_stream_closes_the_socket(
        self, connect: Connect, drafter: Drafter
    ) -> None:
        port = free_port()
        async with connect(port) as (_, events):
            async with serving(drafter, port):
                await events.next(DrafterUp)
                await until(lambda: drafter.sockets)
            await events.next(DrafterDown)
            assert await asyncio.to_thread(drafter.sockets[0].receive, pb.DraftRequest) is None


async def test_a_socket_of_another_host_leaves_rounds_to_grpc(connect: Connect) -> None:
    drafter, port = Drafter(), free_port()
    drafter.welcome.same_host = "nowhere-on-this-host"
    async with serving(drafter, port), connect(port) as (client, events):
        linked = await events.next(DrafterUp)
        client.round(linked.link, (), (), (1,))
        assert await events.next(Proposals)
        assert drafter.sockets == []


async def test_a_drafter_that_hangs_up_without_a_word_is_tried_again(connect: Connect) -> None:
    drafter, port = Drafter(), free_port()
    drafter.silent = True
    async with serving(drafter, port), connect(port) as (_, events):
        await events.next(DrafterDown)
        drafter.silent = False
        assert (await events.next(DrafterUp)).welcome.max_draft_tokens


async def test_what_is_no_drafter_is_no_drafter(connect: Connect) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    handler: Callable[[Any, Any], Awaitable[None]] = hang_up
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, connect(port) as (_, events):
        reasons = {(await events.next(DrafterDown)).reason for _ in range(2)}
        assert all(reasons)


@pytest.mark.parametrize(
    ("device", "target", "said"),
    [("cuda:a", "cuda:a", True), ("cuda:a", "cuda:b", False), ("cpu:h", "cpu:h", False)],
)
async def test_two_services_on_one_gpu_are_told_of(
    drafter: Drafter, caplog: pytest.LogCaptureFixture, device: str, target: str, said: bool
) -> None:
    caplog.set_level(logging.INFO)
    drafter.welcome.device = device
    port = free_port()
    async with serving(drafter, port):
        events = Events()
        client = DrafterClient(f"127.0.0.1:{port}", SHAPE, [target])
        client.start(events.post)
        await events.next(DrafterUp)
        await client.close()
    assert ("they take turns" in caplog.text) is said
    assert "drafter linked by" in caplog.text
