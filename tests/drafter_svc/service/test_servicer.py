"""The service over a real gRPC server on loopback."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from unittest.mock import ANY

import grpc
import grpc.aio
import pytest
import torch

from drafter_svc.service.servicer import NAME
from speckernels.tensor_codec import pack
from specwire import codec
from specwire.messages import CatchUpAck, Draft, ResendFrom
from specwire.v1 import drafter_pb2 as pb
from specwire.v1 import tensor_pb2
from tests.support.drafter_fixtures import DESCRIPTION, Parts, random_text
from tests.support.served_drafter import (
    HELLO,
    Running,
    Servers,
    check,
    hello,
    refusal,
    without_service,
)

Serve = Callable[[Parts], Awaitable[Running]]


@pytest.fixture(params=[False, True], ids=["gRPC", "same host"])
async def serve(request: pytest.FixtureRequest) -> AsyncIterator[Serve]:
    async with Servers(request.param) as servers:
        yield servers.start


@pytest.fixture
async def running(serve: Serve) -> Running:
    return await serve(Parts())


async def test_describe(running: Running) -> None:
    described = await running.stub().Describe(pb.DescribeRequest())
    assert without_service(described) == DESCRIPTION
    assert bool(described.same_host) == running.same_host


async def test_rounds_are_answered_in_order(running: Running) -> None:
    verifier = await running.link()
    texts = [random_text(20, 1), random_text(20, 2)]
    answer = await verifier.ask(texts[0].extend(1, 0, 9, 4), texts[1].extend(2, 0, 5, 2))
    check(running, answer.drafts[0], texts[0], 9, 4)
    check(running, answer.drafts[1], texts[1], 5, 2)
    assert all(len(draft.confidence) == len(draft.tokens) for draft in answer.drafts)
    assert answer.cost.compute_us > 0
    answer = await verifier.ask(texts[0].extend(1, 9, 10, 3))
    check(running, answer.drafts[0], texts[0], 10, 3)


async def test_features_may_travel_in_another_dtype(running: Running) -> None:
    verifier = await running.link()
    text = random_text(20, 1)
    text.features = text.features.bfloat16()
    answer = await verifier.ask(text.extend(1, 0, 9, 4))
    text.features = text.features.float()
    check(running, answer.drafts[0], text, 9, 4)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"target_fingerprint": "beef"}, "fingerprint"),
        ({"vocab_size": 129}, "vocab_size"),
        ({"hidden_size": 32}, "hidden_size"),
    ],
)
async def test_another_target_is_refused(
    running: Running, changes: dict[str, Any], field: str
) -> None:
    call = running.stub().Draft()
    await call.write(pb.DraftRequest(hello=hello(**changes)))
    code, sentence = await refusal(call)
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert field in sentence


def features(*shape: int) -> tensor_pb2.Tensor:
    return pack(torch.zeros(*shape))


def cut(tensor: tensor_pb2.Tensor) -> tensor_pb2.Tensor:
    tensor.data = tensor.data[:-1]
    return tensor


OPEN = codec.encode_extend(random_text(9, 0).extend(1, 0, 3, 2)[0])
NO_OPENING = pb.Extend(seq=1, start=0, tokens=[1, 2, 3], draft_tokens=2)
BIG_TOKEN = pb.Extend(seq=1, start=4, tokens=[128], draft_tokens=2)
BAD_ROUNDS = {
    "bytes do not match shape": (pb.Round(number=1, extends=[OPEN], features=cut(features(3, 48)))),
    "wrong width": pb.Round(number=1, extends=[OPEN], features=features(3, 47)),
    "wrong rows": pb.Round(number=1, extends=[OPEN], features=features(2, 48)),
    "no features": pb.Round(number=1, extends=[OPEN]),
    "features without rows": pb.Round(number=1, features=features(2, 48)),
    "no opening": pb.Round(number=1, extends=[NO_OPENING], features=features(3, 48)),
    "token": pb.Round(number=1, extends=[BIG_TOKEN], features=features(1, 48)),
    "draft_tokens": pb.Round(number=1, extends=[pb.Extend(seq=1, start=2, draft_tokens=9)]),
    "lookup_tokens": pb.Round(number=1, extends=[pb.Extend(seq=1, start=2, lookup_tokens=9)]),
}


@pytest.mark.parametrize("name", BAD_ROUNDS)
async def test_a_bad_round_ends_its_own_stream_only(running: Running, name: str) -> None:
    good, bad = await running.link(1), await running.link(2)
    await bad.write(pb.DraftRequest(round=BAD_ROUNDS[name]))
    code, sentence = await refusal(bad.call)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert sentence.endswith(".")
    text = random_text(20, 1)
    check(running, (await good.ask(text.extend(1, 0, 9, 4))).drafts[0], text, 9, 4)
    # The link is free for a new connection.
    await running.link(2)


@pytest.mark.parametrize("numbers", [(2,), (1, 3), (1, 1)])
async def test_a_gap_in_the_numbers_is_data_loss(
    running: Running, numbers: tuple[int, ...]
) -> None:
    verifier = await running.link()
    for number in numbers:
        await verifier.write(pb.DraftRequest(round=pb.Round(number=number)))
    assert (await refusal(verifier.call))[0] == grpc.StatusCode.DATA_LOSS


@pytest.mark.parametrize("method", ["Draft", "Bulk"])
async def test_garbage_and_a_missing_hello_are_invalid(running: Running, method: str) -> None:
    bystander = await running.link()
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    raw: Any = running.channel.stream_stream(f"/{NAME}/{method}")
    for data in (b"\xff\xff\xff", pb.DraftRequest(round=pb.Round(number=1)).SerializeToString()):
        call = raw()
        await call.write(data)
        assert (await refusal(call))[0] == invalid
    call = raw()
    await call.done_writing()
    assert (await refusal(call))[0] == invalid
    text = random_text(20, 1)
    check(running, (await bystander.ask(text.extend(1, 0, 9, 4))).drafts[0], text, 9, 4)


async def test_garbage_amid_a_stream_frees_the_link(running: Running) -> None:
    raw: Any = running.channel.stream_stream(f"/{NAME}/Draft")
    call = raw()
    await call.write(pb.DraftRequest(hello=HELLO).SerializeToString())
    await call.read()
    await call.write(b"\x0a\xff")
    assert (await refusal(call))[0] == grpc.StatusCode.INVALID_ARGUMENT
    await running.link(HELLO.link_id)


async def test_a_link_id_is_taken_once(running: Running) -> None:
    first = await running.link(7)
    call = running.stub().Draft()
    await call.write(pb.DraftRequest(hello=hello(link_id=7)))
    assert (await refusal(call))[0] == grpc.StatusCode.INVALID_ARGUMENT
    assert not first.call.done()


async def test_links_have_sequence_ids_of_their_own(running: Running) -> None:
    first, second = await running.link(1), await running.link(2)
    texts = [random_text(20, 1), random_text(20, 2)]
    await first.send(texts[0].extend(5, 0, 9, 4))
    await second.send(texts[1].extend(5, 0, 9, 4))
    check(running, (await first.receive()).drafts[0], texts[0], 9, 4)
    check(running, (await second.receive()).drafts[0], texts[1], 9, 4)
    await first.send(closes=[5])
    check(running, (await second.ask(texts[1].extend(5, 9, 11, 2))).drafts[0], texts[1], 11, 2)


async def test_need_flow_and_closing_twice(running: Running) -> None:
    verifier = await running.link()
    text = random_text(20, 1)
    assert (await verifier.ask(text.extend(5, 4, 6, 2))).needs == (ResendFrom(5, 0, 6),)
    check(running, (await verifier.ask(text.extend(5, 0, 6, 2))).drafts[0], text, 6, 2)
    await verifier.send(closes=[5])
    await verifier.send(closes=[5, 99])
    assert (await verifier.ask(text.extend(5, 6, 7, 2))).needs == (ResendFrom(5, 0, 7),)


async def test_eviction_then_need_then_replay(serve: Serve) -> None:
    running = await serve(Parts(rows=128))
    verifier = await running.link()
    texts = [random_text(50, seed) for seed in range(3)]
    for seq, text in enumerate(texts):
        check(running, (await verifier.ask(text.extend(seq, 0, 30, 3))).drafts[0], text, 30, 3)
    assert (await verifier.ask(texts[0].extend(0, 30, 31, 3))).needs == (ResendFrom(0, 0, 31),)
    answer = await verifier.ask(texts[0].extend(0, 0, 31, 3))
    check(running, answer.drafts[0], texts[0], 31, 3)


async def test_features_that_are_not_finite_harm_their_sequence_only(running: Running) -> None:
    verifier = await running.link()
    good, bad = random_text(20, 1), random_text(20, 2)
    bad.features[2] = torch.nan
    answer = await verifier.ask(bad.extend(1, 0, 9, 4), good.extend(2, 0, 9, 4))
    assert answer.drafts[0] == Draft(1, 9, ())
    check(running, answer.drafts[1], good, 9, 4)


async def test_bulk_then_round(running: Running) -> None:
    verifier = await running.link()
    bulk = await verifier.bulk()
    text = random_text(320, 1)
    for start in (0, 150, 40):
        extend, rows = text.extend(5, start, start + 150)
        message = pb.BulkExtend(extend=codec.encode_extend(extend), features=pack(rows))
        await bulk.write(pb.BulkRequest(extend=message))
    acks = [codec.decode_ack((await bulk.read()).ack) for _ in range(3)]
    assert acks == [
        CatchUpAck(5, *held, compute_us=ANY)
        for held in ((150, 150, 150), (300, 300, 150), (300, 190, 150))
    ]
    assert acks[0].compute_us > 0
    check(running, (await verifier.ask(text.extend(5, 300, 302, 3))).drafts[0], text, 302, 3)
    await bulk.done_writing()
    assert await bulk.read() is grpc.aio.EOF


async def test_bulk_belongs_to_an_open_link(running: Running) -> None:
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    call = running.stub().Bulk()
    await call.write(pb.BulkRequest(hello=HELLO))
    assert (await refusal(call))[0] == invalid
    verifier = await running.link()
    bulk = await verifier.bulk()
    second = running.stub().Bulk()
    await second.write(pb.BulkRequest(hello=HELLO))
    assert (await refusal(second))[0] == invalid
    verifier.call.cancel()
    assert (await refusal(bulk))[0] == grpc.StatusCode.UNAVAILABLE


async def test_a_bulk_message_is_rows_and_nothing_else(running: Running) -> None:
    verifier = await running.link()
    text = random_text(20, 1)
    wishing, rows = text.extend(5, 0, 9, 2)
    looking, _ = text.extend(5, 0, 9, lookup_tokens=2)
    for message in (
        pb.BulkExtend(extend=codec.encode_extend(wishing), features=pack(rows)),
        pb.BulkExtend(extend=codec.encode_extend(looking), features=pack(rows)),
        pb.BulkExtend(extend=pb.Extend(seq=5, start=3)),
        pb.BulkExtend(extend=OPEN, features=features(3, 49)),
    ):
        bulk = await verifier.bulk()
        await bulk.write(pb.BulkRequest(extend=message))
        assert (await refusal(bulk))[0] == grpc.StatusCode.INVALID_ARGUMENT
    check(running, (await verifier.ask(text.extend(5, 0, 9, 2))).drafts[0], text, 9, 2)


async def test_a_lost_link_frees_its_sequences(running: Running) -> None:
    verifier = await running.link(1)
    text = random_text(20, 1)
    await verifier.ask(text.extend(5, 0, 9, 4))
    assert running.parts.cache.bytes_used
    verifier.call.cancel()
    while running.service.links:
        await asyncio.sleep(0.01)
    verifier = await running.link(1)
    assert (await verifier.ask(text.extend(5, 9, 10, 4))).needs == (ResendFrom(5, 0, 10),)
    assert not running.parts.cache.bytes_used


@pytest.mark.parametrize("serve", [False], indirect=True)
async def test_the_end_of_requests_ends_the_stream_after_the_answers(running: Running) -> None:
    verifier = await running.link()
    text = random_text(20, 1)
    await verifier.send(text.extend(5, 0, 9, 4))
    await verifier.call.done_writing()
    check(running, (await verifier.receive()).drafts[0], text, 9, 4)
    assert await verifier.call.read() is grpc.aio.EOF
    assert await verifier.call.code() == grpc.StatusCode.OK


async def test_drain_answers_and_ends_all_streams(running: Running) -> None:
    verifier = await running.link()
    text = random_text(20, 1)
    check(running, (await verifier.ask(text.extend(5, 0, 9, 4))).drafts[0], text, 9, 4)
    await running.service.drain()
    assert (await refusal(verifier.call))[0] == grpc.StatusCode.UNAVAILABLE
    call = running.stub().Draft()
    await call.write(pb.DraftRequest(hello=hello(link_id=9)))
    assert (await refusal(call))[0] == grpc.StatusCode.UNAVAILABLE
