"""VerifierService over real gRPC on loopback, the engine in the same process."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import torch

import speckernels as kernels
from specwire.tensor import unpack_floats
from specwire.v1 import verifier_pb2 as pb
from tests.support.running_engine import greedy_texts, reference_of, target_of
from tests.support.served_verifier import NAME, Served, served_verifier
from verifier_svc.service import servicer as service_module
from verifier_svc.service import validation

PROMPT = (40, 41, 42, 43, 44)

Serve = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture
def serve(tiny_llama: Path) -> Serve:
    return partial(served_verifier, tiny_llama)


def request(tokens: tuple[int, ...] = PROMPT, **fields: Any) -> pb.GenerateRequest:
    sampling: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}
    sampling |= fields.pop("sampling", {})
    given = {"tokens": tokens, "output_start": len(tokens), **fields}
    return pb.GenerateRequest(sampling=pb.Sampling(**sampling), **given)


def ids_of(frames: list[pb.GenerateResponse]) -> list[int]:
    return [token for frame in frames for token in frame.tokens.ids]


async def test_describe_model_streams_the_model_and_its_tokenizer(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "_CHUNK_BYTES", 1000)
    async with serve("--max-sequences", "3", "--max-model-len", "128") as served:
        frames = [frame async for frame in served.stub.DescribeModel(pb.DescribeModelRequest())]
    model = frames[0].model
    assert (model.vocab_size, model.hidden_size, model.num_layers) == (97, 32, 4)
    assert (model.max_model_len, model.max_sequences, model.dtype) == (128, 3, "float32")
    assert list(model.eos_token_ids) == [1]
    assert (model.device, model.kernels) == ("cpu", kernels.cpu_level() or "")
    assert len(model.fingerprint) == 64
    assert model.max_top_logprobs == 20
    assert not model.speculation
    assert list(model.tokenizer_files) == sorted(served.files)
    whole: dict[str, bytes] = {}
    ended: list[str] = []
    for frame in frames[1:]:
        assert frame.WhichOneof("frame") == "file"
        assert frame.file.name not in ended
        assert len(frame.file.data) <= 1000
        whole[frame.file.name] = whole.get(frame.file.name, b"") + frame.file.data
        ended += [frame.file.name] * frame.file.last
    assert whole == served.files
    assert sorted(ended) == sorted(served.files)


async def test_generate_streams_tokens_with_absolute_indices_and_finishes(
    serve: Serve, tiny_llama: Path
) -> None:
    async with serve() as served:
        frames = await served.generate(request())
        await served.idle()
        assert served.outcome("length") == 1
    (text,) = greedy_texts(tiny_llama, [PROMPT], 12)
    assert [frame.number for frame in frames] == list(range(len(frames)))
    assert [*PROMPT, *ids_of(frames)] == text
    index = len(PROMPT)
    for frame in frames[:-1]:
        assert frame.tokens.start == index
        assert not frame.tokens.HasField("logprobs")
        index += len(frame.tokens.ids)
    finish = frames[-1].finish
    assert finish.reason == pb.FINISH_REASON_LENGTH
    assert (finish.usage.prompt_tokens, finish.usage.completion_tokens) == (5, 12)
    assert finish.timings.prefill_us > 0
    assert finish.timings.target_us > 0


async def test_stop_ends_with_the_stop_token(serve: Serve) -> None:
    async with serve() as served:
        free = ids_of(await served.generate(request()))
        frames = await served.generate(request(sampling={"stop_token_ids": [free[4]]}))
    assert ids_of(frames) == free[: free.index(free[4]) + 1]
    assert frames[-1].finish.reason == pb.FINISH_REASON_STOP


async def test_logprobs_travel_as_tensors(serve: Serve, tiny_llama: Path) -> None:
    async with serve() as served:
        frames = await served.generate(request(sampling={"top_logprobs": 3}))
        drawn_only = await served.generate(request(sampling={"top_logprobs": 0}))
    text = [*PROMPT, *ids_of(frames)]
    with torch.inference_mode():
        logits = reference_of(tiny_llama)(torch.tensor([text])).logits[0].double()
    exact = torch.log_softmax(logits, -1)
    for frame in frames[:-1]:
        tokens, logprobs = frame.tokens, frame.tokens.logprobs
        drawn = unpack_floats(logprobs.drawn, "drawn")
        top = unpack_floats(logprobs.top, "top")
        assert top.shape == (len(tokens.ids), 3)
        ids = torch.tensor(list(logprobs.top_ids)).view(-1, 3)
        for i, token in enumerate(tokens.ids):
            row = exact[tokens.start + i - 1]
            assert drawn[i] == pytest.approx(row[token].item(), abs=1e-4)
            assert ids[i].tolist() == row.topk(3).indices.tolist()
            assert top[i].tolist() == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
    for frame in drawn_only[:-1]:
        assert unpack_floats(frame.tokens.logprobs.drawn, "drawn").shape == (1,)
        assert not frame.tokens.logprobs.top_ids


async def test_a_resumed_stream_continues_the_indices(serve: Serve) -> None:
    async with serve() as served:
        whole = ids_of(await served.generate(request()))
        rest = await served.generate(request((*PROMPT, *whole[:7]), output_start=len(PROMPT)))
    assert ids_of(rest) == whole[7:]
    assert rest[0].tokens.start == len(PROMPT) + 7


async def test_many_calls_at_once_get_their_own_tokens(serve: Serve, tiny_llama: Path) -> None:
    prompts = [tuple(range(3 + i, 10 + 2 * i)) for i in range(12)]
    texts = greedy_texts(tiny_llama, prompts, 12)
    async with serve("--max-sequences", "5") as served:
        answers = await asyncio.gather(*[served.generate(request(p)) for p in prompts])
    for prompt, frames, text in zip(prompts, answers, texts, strict=True):
        assert [*prompt, *ids_of(frames)] == text


async def test_a_cancelled_call_frees_its_place(serve: Serve) -> None:
    async with serve("--max-sequences", "1") as served:
        call = served.stub.Generate(request(sampling={"max_tokens": 500}))
        await call.read()
        other = asyncio.create_task(served.generate(request()))
        call.cancel()
        assert len(ids_of(await other)) == 12
        await served.idle()
        assert served.outcome("cancelled") == 1


async def test_a_deadline_cancels_too(serve: Serve) -> None:
    async with serve() as served:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            async for _ in served.stub.Generate(
                request(sampling={"max_tokens": 500}), timeout=0.05
            ):
                pass
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await served.idle()


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.GenerateRequest(), "tokens"),
        (request((5, 97)), "tokens"),
        (request(tuple([5] * 512)), "tokens"),
        (request(output_start=9), "output_start"),
        (request(sampling={"temperature": -1.0}), "temperature"),
        (request(sampling={"temperature": float("nan")}), "temperature"),
        (request(sampling={"top_p": 0.0}), "top_p"),
        (request(sampling={"logit_bias": {200: 1.0}}), "logit_bias"),
        (request(sampling={"max_tokens": 0}), "max_tokens"),
        (request(sampling={"min_tokens": 13}), "min_tokens"),
        (request(sampling={"top_logprobs": 21}), "top_logprobs"),
    ],
)
async def test_bad_requests_name_their_field(
    serve: Serve, message: pb.GenerateRequest, field: str
) -> None:
    async with serve() as served:
        neighbour = asyncio.create_task(served.generate(request()))
        code, details = await served.refusal(message)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert details.startswith(f"{field}: ")
        assert len(ids_of(await neighbour)) == 12, "nobody else is affected"


async def test_garbage_is_an_invalid_argument(serve: Serve) -> None:
    async with serve() as served:
        for garbage in (b"\xff" * 40, b"\x22\x05\x01", b"GET / HTTP/1.1\r\n\r\n"):
            method: Any = served.channel.unary_stream(f"/{NAME}/Generate")
            call = method(garbage)
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call.read()
            assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert len(ids_of(await served.generate(request()))) == 12


async def test_bytes_that_are_no_grpc_leave_the_service_up(serve: Serve) -> None:
    async with serve() as served:
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", bytes(5000), b"PRI * HTTP/2.0\r\n\r\n" * 9):
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(garbage)
            await writer.drain()
            writer.close()
            await reader.read()
        assert len(ids_of(await served.generate(request()))) == 12


async def test_an_older_epoch_of_a_session_is_fenced_off(serve: Serve) -> None:
    async with serve() as served:
        await served.generate(request(session_id="s", epoch=7))
        await served.generate(request(session_id="s", epoch=7))
        code, details = await served.refusal(request(session_id="s", epoch=6))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert details == "epoch: 6 was overtaken by 7."
        await served.generate(request(session_id="other", epoch=1))
        await served.generate(request(epoch=0))
        await served.generate(request(session_id="s", epoch=2**63))
        code, _ = await served.refusal(request(session_id="s", epoch=7))
        assert code is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_refused_request_fences_nothing(serve: Serve) -> None:
    async with serve() as served:
        code, _ = await served.refusal(request((5, 97), session_id="s", epoch=9))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        await served.generate(request(session_id="s", epoch=1))


@pytest.fixture
def gate(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While it is cleared, the engine stands still in the middle of a step."""
    target, opened = target_of(tiny_llama), threading.Event()
    run = target.run

    def wait(*args: Any) -> torch.Tensor:
        assert opened.wait(20)
        return run(*args)

    monkeypatch.setattr(target, "run", wait)
    opened.set()
    return opened


async def opened(served: Served, calls: int) -> None:
    """Wait until so many calls are in the service."""
    async with asyncio.timeout(10):
        while served.dispatcher.calls < calls:
            await asyncio.sleep(0.002)


async def test_overload_is_refused_at_once_and_passes(serve: Serve, gate: threading.Event) -> None:
    async with serve("--max-sequences", "1", "--max-waiting", "1") as served:
        gate.clear()
        calls = [asyncio.create_task(served.generate(request())) for _ in range(2)]
        await opened(served, 2)
        code, details = await served.refusal(request())
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details == "2 generations are running or queued already."
        gate.set()
        for call in calls:
            assert len(ids_of(await call)) == 12
        await served.idle()
        assert len(ids_of(await served.generate(request()))) == 12


async def test_draining_refuses_new_calls_and_finishes_those_in_flight(
    serve: Serve, gate: threading.Event
) -> None:
    async with serve("--max-sequences", "1") as served:
        gate.clear()
        calls = [asyncio.create_task(served.generate(request())) for _ in range(2)]
        await opened(served, 2)
        report = await served.stub.Drain(pb.DrainRequest())
        assert (report.running, report.waiting) == (1, 1)
        code, details = await served.refusal(request())
        assert (code, details) == (grpc.StatusCode.UNAVAILABLE, "The verifier is draining.")
        gate.set()
        for call in calls:
            assert len(ids_of(await call)) == 12
        await served.idle()
        report = await served.stub.Drain(pb.DrainRequest())
        assert (report.running, report.waiting) == (0, 0)


async def test_a_failed_step_is_unavailable_and_the_next_request_served(
    serve: Serve, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve() as served:
        with monkeypatch.context() as patched:

            def fail(*_: object) -> None:
                raise RuntimeError("scripted")

            patched.setattr(target_of(tiny_llama), "run", fail)
            code, details = await served.refusal(request())
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "engine failed" in details
        assert "scripted" not in details
        await served.idle()
        assert served.outcome("failed") == 1
        assert len(ids_of(await served.generate(request()))) == 12


async def test_a_stopped_engine_is_unavailable(serve: Serve) -> None:
    async with serve() as served:
        served.engine.stop()
        code, details = await served.refusal(request())
        assert (code, details) == (grpc.StatusCode.UNAVAILABLE, "The engine has stopped.")


async def test_logits_that_are_not_finite_are_the_requests_own_fault(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "_check_range", lambda *_: None)
    async with serve() as served:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await served.generate(request(sampling={"logit_bias": {5: math.nan}}))
        assert refused.value.code() is grpc.StatusCode.OUT_OF_RANGE
        assert "not finite" in (refused.value.details() or "")
        await served.idle()
        assert served.outcome("failed") == 1
        assert ids_of(await served.generate(request()))


async def test_what_is_accepted_is_told_before_its_first_token(serve: Serve) -> None:
    async with serve("--max-sequences", "1") as served:
        running = served.stub.Generate(request(sampling={"max_tokens": 50}))
        await running.initial_metadata()
        waiting = served.stub.Generate(request(sampling={"max_tokens": 1}))
        refused = served.stub.Generate(request(sampling={"top_p": 2.0}))
        for call, over in ((waiting, False), (refused, True)):
            await asyncio.wait_for(call.initial_metadata(), 5)
            assert call.done() == over
        running.cancel()
        assert [frame async for frame in waiting]
