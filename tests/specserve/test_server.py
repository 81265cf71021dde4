"""The server that both services run, with a servicer that does what each test asks of it."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from specserve import server
from specserve.settings import StartError
from specwire import limits
from specwire.errors import Incompatible, Overloaded
from specwire.v1 import drafter_pb2 as pb
from specwire.v1 import drafter_pb2_grpc

NAME = "specwire.v1.DrafterService"
ROOT = Path(__file__).parents[2]

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Servicer(drafter_pb2_grpc.DrafterServiceServicer):
    closed: asyncio.Event

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.closed = asyncio.Event()

    async def Describe(  # noqa: N802
        self, request: Any, context: Any
    ) -> pb.DescribeResponse:
        if self.error is not None:
            raise self.error
        return pb.DescribeResponse(version="1")

    async def Draft(  # noqa: N802
        self, requests: AsyncIterator[pb.DraftRequest], context: Any
    ) -> AsyncIterator[pb.DraftResponse]:
        try:
            async for request in requests:
                if self.error is not None:
                    raise self.error
                yield pb.DraftResponse(proposals=pb.Proposals(number=request.round.number))
        finally:
            self.closed.set()

    async def Bulk(  # type: ignore[override]  # noqa: N802
        self, requests: AsyncIterator[Any], context: Any
    ) -> None:
        """Answers without being a generator, as grpc's own health service does."""
        async for request in requests:
            await context.write(pb.BulkResponse(ack=pb.BulkAck(seq=request.extend.extend.seq)))
            raise Incompatible("Once is enough.")

    async def Projection(  # noqa: N802
        self, request: Any, context: Any
    ) -> AsyncIterator[pb.ProjectionResponse]:
        yield pb.ProjectionResponse()


class Served:
    def __init__(self, servicer: Servicer) -> None:
        self.servicer = servicer
        self.server = server.ServiceServer(
            NAME, lambda to: drafter_pb2_grpc.add_DrafterServiceServicer_to_server(servicer, to)
        )

    async def __aenter__(self) -> "Served":
        self.port = await self.server.start("127.0.0.1:0")
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}")
        self.stub: Any = drafter_pb2_grpc.DrafterServiceStub(self.channel)
        self.health: Any = health_pb2_grpc.HealthStub(self.channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self.server.stop(0)


async def refusal(reading: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await reading
    return caught.value.code(), caught.value.details() or ""


def round_of(number: int) -> pb.DraftRequest:
    return pb.DraftRequest(round=pb.Round(number=number))


@pytest.mark.parametrize("error", [Incompatible("It does not fit."), Overloaded("Too much.")])
async def test_a_wire_error_becomes_its_code_and_sentence(error: Incompatible | Overloaded) -> None:
    async with Served(Servicer(error)) as served:
        assert await refusal(served.stub.Describe(pb.DescribeRequest())) == (error.code, str(error))
        call = served.stub.Draft()
        await call.write(round_of(1))
        assert await refusal(call.read()) == (error.code, str(error))


async def test_a_handler_may_write_to_its_context() -> None:
    async with Served(Servicer()) as served:
        call = served.stub.Bulk()
        extend = pb.BulkExtend(extend=pb.Extend(seq=8))
        await call.write(pb.BulkRequest(extend=extend))
        assert (await call.read()).ack.seq == 8
        assert (await refusal(call.read()))[1] == "Once is enough."


async def test_an_unexpected_error_is_logged_and_not_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with Served(Servicer(ValueError("the secret"))) as served:
        call = served.stub.Draft()
        await call.write(round_of(1))
        for reading in (served.stub.Describe(pb.DescribeRequest()), call.read()):
            code, sentence = await refusal(reading)
            assert code == grpc.StatusCode.INTERNAL
            assert "secret" not in sentence
    assert "the secret" in "".join(capsys.readouterr())


async def test_bytes_that_are_no_message_are_invalid() -> None:
    async with Served(Servicer()) as served:
        unary: Any = served.channel.unary_unary(f"/{NAME}/Describe")
        assert (await refusal(unary(b"\xff\xff")))[0] == grpc.StatusCode.INVALID_ARGUMENT
        stream: Any = served.channel.stream_stream(f"/{NAME}/Draft")
        call = stream()
        await call.write(round_of(4).SerializeToString())
        assert pb.DraftResponse.FromString(await call.read()).proposals.number == 4
        await call.write(b"\xff\xff")
        assert (await refusal(call.read()))[0] == grpc.StatusCode.INVALID_ARGUMENT
        assert (await served.stub.Describe(pb.DescribeRequest())).version == "1"


async def test_unknown_methods_stay_unimplemented() -> None:
    async with Served(Servicer()) as served:
        unary: Any = served.channel.unary_unary(f"/{NAME}/Nothing")
        assert (await refusal(unary(b"")))[0] == grpc.StatusCode.UNIMPLEMENTED


async def test_messages_over_the_limit_are_refused() -> None:
    async with Served(Servicer()) as served:
        unary: Any = served.channel.unary_unary(f"/{NAME}/Describe")
        data = bytes(limits.MAX_MESSAGE_BYTES + 1)
        assert (await refusal(unary(data)))[0] == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_client_that_leaves_ends_the_handler() -> None:
    async with Served(Servicer()) as served:
        call = served.stub.Draft()
        await call.write(round_of(1))
        await call.read()
        call.cancel()
        assert await asyncio.wait_for(served.servicer.closed.wait(), 10)


async def test_health_follows_the_drain() -> None:
    async with Served(Servicer()) as served:
        watch = served.health.Watch(health_pb2.HealthCheckRequest(service=NAME))
        assert (await watch.read()).status == SERVING
        for name in ("", NAME):
            request = health_pb2.HealthCheckRequest(service=name)
            assert (await served.health.Check(request)).status == SERVING
        await served.server.drain()
        assert (await watch.read()).status == NOT_SERVING
        # Draining refuses nothing yet.
        assert (await served.stub.Describe(pb.DescribeRequest())).version == "1"


async def test_a_call_in_flight_ends_by_itself_within_the_grace() -> None:
    async with Served(Servicer()) as served:
        call = served.stub.Draft()
        await call.write(round_of(1))
        await call.read()
        stopping = asyncio.create_task(served.server.stop(10))
        await asyncio.sleep(0.1)
        await call.write(round_of(2))
        assert (await call.read()).proposals.number == 2
        await call.done_writing()
        await asyncio.wait_for(stopping, 5)
        assert await call.code() == grpc.StatusCode.OK


async def test_reflection_lists_the_service() -> None:
    async with Served(Servicer()) as served:
        make_stub: Any = reflection_pb2_grpc.ServerReflectionStub
        stub = make_stub(served.channel)
        requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
        answer = await stub.ServerReflectionInfo(iter(requests)).read()
        assert NAME in [service.name for service in answer.list_services_response.service]


async def test_a_port_in_use_is_one_sentence() -> None:
    async with Served(Servicer()) as served:
        second = Served(Servicer()).server
        with pytest.raises(StartError, match=r"^Cannot listen on 127\.0\.0\.1:\d+: Address"):
            await second.start(f"127.0.0.1:{served.port}")
        with pytest.raises(StartError, match="Cannot serve metrics on"):
            server.serve_metrics("127.0.0.1:0", served.port)


PROGRAM = """
import asyncio, sys
from specserve import logs
from specserve import server as grpc_server
from specwire.v1 import drafter_pb2 as pb, drafter_pb2_grpc

class Servicer(drafter_pb2_grpc.DrafterServiceServicer):
    async def Describe(self, request, context):
        loop = type(asyncio.get_running_loop()).__module__
        logs.get("program").info("described", loop=loop)
        return pb.DescribeResponse()

async def drained():
    logs.get("program").info("drained")

async def main():
    logs.configure("example")
    server = grpc_server.ServiceServer(
        "specwire.v1.DrafterService",
        lambda to: drafter_pb2_grpc.add_DrafterServiceServicer_to_server(Servicer(), to),
    )
    await grpc_server.serve(server, sys.argv[1], grace=5, on_drain=drained)

grpc_server.run("example", main)
"""


def start(listen: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, listen],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "proto")},
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_cleanly(number: signal.Signals) -> None:
    process = start("127.0.0.1:0")
    assert process.stderr is not None
    first = json.loads(process.stderr.readline())
    assert (first["event"], first["service"]) == ("serving", "example")
    with grpc.insecure_channel(first["listen"]) as channel:
        stub: Any = drafter_pb2_grpc.DrafterServiceStub(channel)
        stub.Describe(pb.DescribeRequest(), metadata=(("x-request-id", "r-17"),))
    process.send_signal(number)
    _, rest = process.communicate(timeout=20)
    lines = [json.loads(line) for line in rest.splitlines()]
    assert [line["event"] for line in lines] == ["described", "draining", "drained", "stopped"]
    assert lines[0]["request_id"] == "r-17"
    assert lines[0]["loop"] == "uvloop"
    assert "request_id" not in lines[1]
    assert process.returncode == 0


def test_a_failed_start_is_one_sentence_and_exit_code_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start(f"127.0.0.1:{taken.getsockname()[1]}")
        _, shown = process.communicate(timeout=20)
    assert process.returncode == 2
    (line,) = shown.splitlines()
    assert line.startswith("example: Cannot listen on")
