"""VerifierService.Features over real gRPC on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from speckernels.tensor_codec import unpack
from specwire.v1 import verifier_pb2 as pb
from tests.support.running_engine import reference_of, target_of
from tests.support.served_verifier import Served, served_verifier
from verifier_svc.service import features_calls

Serve = Callable[..., AbstractAsyncContextManager[Served]]
Status = grpc.StatusCode
LAYERS = (0, 2, 3)


@pytest.fixture
def serve(tiny_llama: Path) -> Serve:
    return partial(served_verifier, tiny_llama)


def tokens_of(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(2, 97, (length,), generator=generator).tolist()


def hello(layers: Iterable[int] = LAYERS, fingerprint: str = "") -> pb.FeaturesRequest:
    return pb.FeaturesRequest(
        hello=pb.FeaturesHello(aux_layer_ids=layers, target_fingerprint=fingerprint)
    )


def document(number: int, tokens: list[int], name: int | None = None) -> pb.FeaturesRequest:
    name = number if name is None else name
    return pb.FeaturesRequest(document=pb.Document(number=number, id=name, tokens=tokens))


def documents(texts: list[list[int]], layers: Iterable[int] = LAYERS) -> list[pb.FeaturesRequest]:
    return [hello(layers), *(document(n, text) for n, text in enumerate(texts, start=1))]


async def answers(served: Served, requests: list[pb.FeaturesRequest]) -> list[pb.FeaturesResponse]:
    return [answer async for answer in served.stub.Features(iter(requests))]


async def refusal(served: Served, requests: list[pb.FeaturesRequest]) -> tuple[Status, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await answers(served, requests)
    return error.value.code(), error.value.details() or ""


def check_against_transformers(
    folder: Path,
    frames: list[pb.FeaturesResponse],
    texts: list[list[int]],
    layers: tuple[int, ...] = LAYERS,
) -> None:
    assert [frame.number for frame in frames] == list(range(len(frames)))
    assert frames[0].WhichOneof("frame") == "welcome"
    assert all(frame.ByteSize() < 1 << 20 for frame in frames)
    end = frames[-1].end
    assert (end.documents, end.tokens) == (len(texts), sum(map(len, texts)))
    got: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for frame in frames[1:-1]:
        rows = frame.rows
        before = got.setdefault(rows.document, [])
        assert rows.start == sum(len(features) for features, _ in before)
        before.append((unpack(rows.features, "features"), unpack(rows.final, "final")))
    for name, text in enumerate(texts, start=1):
        with torch.inference_mode():
            out = reference_of(folder).model(torch.tensor([text]), output_hidden_states=True)
        wanted = torch.cat([out.hidden_states[i][0] for i in layers], -1)
        features = torch.cat([features for features, _ in got[name]])
        final = torch.cat([final for _, final in got[name]])
        torch.testing.assert_close(features, wanted, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(final, out.last_hidden_state[0], atol=1e-4, rtol=1e-4)


async def test_documents_are_answered_by_their_states(serve: Serve, tiny_llama: Path) -> None:
    texts = [tokens_of(n) for n in (1, 2, 17, 500, 64, 512)]
    async with serve() as served:
        frames = await answers(served, documents(texts))
        await served.idle()
        counted = served.registry.get_sample_value("holdcourse_verifier_feature_tokens_total")
        calls = served.registry.get_sample_value("holdcourse_verifier_num_feature_calls")
    welcome = frames[0].welcome
    assert welcome.target_fingerprint == target_of(tiny_llama).fingerprint
    assert (welcome.dtype, welcome.hidden_size, welcome.vocab_size) == ("float32", 32, 97)
    assert (welcome.max_tokens, welcome.window) == (512, 4096)
    check_against_transformers(tiny_llama, frames, texts)
    assert (counted, calls) == (sum(map(len, texts)), 0)


async def test_clients_at_once_get_the_layers_that_each_asked_for(
    serve: Serve, tiny_llama: Path
) -> None:
    layers = [(0,), (3, 1), (0, 1, 2, 3), (2, 2)]
    texts = [[tokens_of(20 + 7 * n, c) for n in range(12)] for c in range(len(layers))]
    async with serve() as served:
        both = zip(texts, layers, strict=True)
        calls = [answers(served, documents(t, wanted)) for t, wanted in both]
        generations = [served.generate(generation()) for _ in range(3)]
        frames, texts_out = await asyncio.gather(
            asyncio.gather(*calls), asyncio.gather(*generations)
        )
    for frame, text, wanted in zip(frames, texts, layers, strict=True):
        check_against_transformers(tiny_llama, frame, text, wanted)
    assert texts_out[0][-1].HasField("finish")


def generation(**sampling: Any) -> pb.GenerateRequest:
    given = {"temperature": 0.0, "max_tokens": 24, "ignore_eos": True, **sampling}
    return pb.GenerateRequest(tokens=[40, 41], output_start=2, sampling=pb.Sampling(**given))


async def test_no_document_is_an_empty_answer(serve: Serve) -> None:
    async with serve() as served:
        frames = await answers(served, [hello()])
    assert [frame.WhichOneof("frame") for frame in frames] == ["welcome", "end"]


@pytest.mark.parametrize(
    ("requests", "code", "sentence"),
    [
        ([], Status.INVALID_ARGUMENT, "hello: must be the first message of the stream."),
        ([document(1, [5])], Status.INVALID_ARGUMENT, "hello: must be the first"),
        ([hello(()), document(1, [5])], Status.INVALID_ARGUMENT, "aux_layer_ids: at least one"),
        (
            [hello((0, 5))],
            Status.INVALID_ARGUMENT,
            "aux_layer_ids: 5 is not a state of a target of 4 layers.",
        ),
        ([hello((1,) * 6)], Status.INVALID_ARGUMENT, "aux_layer_ids: at most 5 states."),
        (
            [hello(fingerprint="0" * 64)],
            Status.FAILED_PRECONDITION,
            "target_fingerprint: 000000000000 was asked for, ",
        ),
        ([hello(), hello()], Status.INVALID_ARGUMENT, "features: only documents may follow"),
        ([hello(), document(1, [])], Status.INVALID_ARGUMENT, "document 1: tokens: at least one"),
        (
            [hello(), document(1, [5] * 101, 9)],
            Status.INVALID_ARGUMENT,
            "document 9: tokens: at most 100, 101 were given.",
        ),
        (
            [hello(), document(1, [5, 97])],
            Status.INVALID_ARGUMENT,
            "document 1: tokens: ids must be below the vocabulary size 97, 97 was given.",
        ),
        ([hello(), document(2, [5])], Status.DATA_LOSS, "message 2 came where 1 was due."),
    ],
)
async def test_bad_requests_are_refused_by_name_and_alone(
    serve: Serve, requests: list[pb.FeaturesRequest], code: Status, sentence: str
) -> None:
    texts = [tokens_of(90, n) for n in range(9)]
    async with serve("--max-document-len", "100") as served:
        neighbours = [
            asyncio.create_task(answers(served, documents(texts))),
            asyncio.create_task(served.generate(generation())),
        ]
        got, details = await refusal(served, requests)
        assert got is code
        assert details.startswith(sentence)
        for neighbour in neighbours:
            await neighbour
        await served.idle()


async def test_an_id_that_is_in_flight_is_refused(serve: Serve) -> None:
    requests = [hello(), *(document(n, tokens_of(400), 7) for n in (1, 2))]
    async with serve() as served:
        code, details = await refusal(served, requests)
    assert code is Status.INVALID_ARGUMENT
    assert details == "document 7: id: a document of that id is in flight."


async def test_a_verifier_may_serve_no_features(serve: Serve) -> None:
    async with serve("--max-document-len", "0") as served:
        code, details = await refusal(served, [hello()])
        assert code is Status.FAILED_PRECONDITION
        assert details == "The verifier serves no features: its --max-document-len is 0."
        await served.generate(generation())


async def test_a_client_that_does_not_read_is_computed_no_further(
    serve: Serve, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_calls, "_WINDOW", 600)
    target, rows, states = target_of(tiny_llama), 0, target_of(tiny_llama).states

    def count(chunks: Any, *rest: Any) -> Any:
        nonlocal rows
        rows += sum(len(chunk.tokens) for chunk in chunks)
        return states(chunks, *rest)

    monkeypatch.setattr(target, "states", count)

    async def requests() -> AsyncIterator[pb.FeaturesRequest]:
        yield hello()
        for number in range(1, 401):
            yield document(number, tokens_of(200))

    async with serve() as served:
        call = served.stub.Features(requests())
        frames = aiter(call)
        assert (await anext(frames)).HasField("welcome")
        before = -1
        while before != rows or not rows:
            before = rows
            await asyncio.sleep(0.3)
        # What is in flight, and what the connection's own buffers hold.
        assert rows < 20_000, "of 80,000"
        await served.generate(generation())
        received = 0
        async for frame in frames:
            received += len(unpack(frame.rows.final, "final")) if frame.HasField("rows") else 0
        assert received == rows == 400 * 200


async def test_a_cancelled_call_leaves_nothing_behind(serve: Serve) -> None:
    async with serve() as served:
        for _ in range(3):
            call = served.stub.Features(iter(documents([tokens_of(512, n) for n in range(20)])))
            await call.read()
            await call.read()
            call.cancel()
        await served.idle()
        queue = served.engine._features.queue
        async with asyncio.timeout(10):
            while queue or queue.pool.free_blocks < queue.pool.blocks:
                await asyncio.sleep(0.01)
        texts = [tokens_of(30)]
        assert (await answers(served, documents(texts)))[-1].HasField("end")


async def test_calls_are_bounded_and_do_not_count_as_generations(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_calls, "MAX_CALLS", 2)
    async with serve("--max-sequences", "1", "--max-waiting", "0") as served:
        calls = [served.stub.Features() for _ in range(2)]
        for call in calls:
            await call.write(hello())
            await call.read()
        code, details = await refusal(served, [hello()])
        assert (code, details) == (
            Status.RESOURCE_EXHAUSTED,
            "2 Features calls are open already.",
        )
        await served.generate(generation())
        calls[0].cancel()
        calls[1].cancel()
        await served.idle()
        await answers(served, documents([tokens_of(9)]))


async def test_a_drain_sends_what_is_owed_and_ends_the_call(serve: Serve, tiny_llama: Path) -> None:
    async with serve() as served:
        call = served.stub.Features()
        await call.write(hello())
        await call.read()
        for number in range(1, 4):
            await call.write(document(number, tokens_of(200)))
        await call.read()
        report = await served.stub.Drain(pb.DrainRequest())
        assert (report.running, report.waiting) == (0, 0)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            while await call.read() is not grpc.aio.EOF:
                pass
        assert error.value.code() is Status.UNAVAILABLE
        assert error.value.details() == "The verifier is draining."
        code, details = await refusal(served, [hello()])
        assert (code, details) == (Status.UNAVAILABLE, "The verifier is draining.")
        await served.idle()


async def test_garbage_after_the_hello_is_an_invalid_argument(serve: Serve) -> None:
    async with serve() as served:
        method: Any = served.channel.stream_stream("/specwire.v1.VerifierService/Features")
        requests = [hello().SerializeToString(), b"\xff" * 40]
        with pytest.raises(grpc.aio.AioRpcError) as error:
            async for _ in method(iter(requests)):
                pass
        assert error.value.code() is Status.INVALID_ARGUMENT
        await served.idle()


async def test_a_failed_step_is_unavailable_and_the_next_call_served(
    serve: Serve, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve() as served:
        with monkeypatch.context() as patched:

            def fail(*_: object) -> None:
                raise RuntimeError("scripted")

            patched.setattr(target_of(tiny_llama), "states", fail)
            code, details = await refusal(served, documents([tokens_of(9)]))
        assert code is Status.UNAVAILABLE
        assert details.startswith("The engine failed on a document")
        frames = await answers(served, documents([tokens_of(9)]))
        check_against_transformers(tiny_llama, frames, [tokens_of(9)])
