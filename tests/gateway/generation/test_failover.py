"""Verifiers that break: the client sees a pause, or one clear error."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import grpc
import openai
import pytest

from specwire.v1 import verifier_pb2 as pb
from tests.gateway.conftest import Serve, saying, until
from tests.support.fake_verifier import FakeVerifier, Fault, Script

HI: Any = [{"role": "user", "content": "Hi"}]
TEXT = "Hello, wörld! 🙂"
Status = grpc.StatusCode


def twin(verifier: FakeVerifier) -> FakeVerifier:
    return FakeVerifier(verifier.model, verifier.files, Script(verifier.script.draw))


BREAKS = [
    Fault(kind="cut"),
    Fault(kind="garbage"),
    Fault(kind="empty"),
    Fault(kind="skip_number"),
    Fault(kind="skip_token"),
    *(
        Fault(code=code)
        for code in (
            Status.UNAVAILABLE,
            Status.DATA_LOSS,
            Status.CANCELLED,
            Status.ABORTED,
            Status.INTERNAL,
            Status.UNKNOWN,
            Status.FAILED_PRECONDITION,
        )
    ),
]


@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("fault", BREAKS, ids=lambda f: f.kind if f.code is None else f.code.name)
async def test_a_broken_stream_goes_on_unnoticed(
    serve: Serve, verifier: FakeVerifier, fault: Fault, after: int
) -> None:
    verifier.script.faults = [Fault(after, fault.code, kind=fault.kind)]
    async with serve(verifier) as gateway:
        stream = await gateway.client.chat.completions.create(
            model="default",
            messages=HI,
            seed=3,
            stream=True,
            stream_options={"include_usage": True},
            extra_headers={"x-session-id": "s"},
        )
        chunks: list[Any] = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == TEXT
    first, second = verifier.requests
    assert second.output_start == first.output_start
    assert list(second.tokens[: first.output_start]) == list(first.tokens)
    assert len(second.tokens) == first.output_start + 3 * after
    assert second.epoch > first.epoch
    assert second.sampling == first.sampling
    usage, report = chunks[-1].usage, chunks[-1].holdcourse
    assert report["failovers"] == 1
    accepted = usage.completion_tokens_details.accepted_prediction_tokens
    assert accepted == usage.completion_tokens - report["rounds"], "rounds before the break count"


async def test_repeated_tokens_are_dropped(serve: Serve, verifier: FakeVerifier) -> None:
    verifier.script.faults = [Fault(1, kind="repeat_tokens")]
    async with serve(verifier) as gateway:
        done = await gateway.client.chat.completions.create(model="default", messages=HI)
    assert done.choices[0].message.content == TEXT
    assert len(verifier.requests) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_another_verifier_takes_over(
    serve: Serve, verifier: FakeVerifier, stream: bool
) -> None:
    other = twin(verifier)
    verifier.script.faults = [Fault(1, Status.UNAVAILABLE) for _ in range(20)]
    other.script.faults = [Fault(1, Status.UNAVAILABLE) for _ in range(20)]
    async with serve(verifier, other) as gateway:
        request = asyncio.ensure_future(
            gateway.client.chat.completions.create(
                model="default", messages=HI, extra_headers={"x-session-id": "s"}
            )
        )
        await until(lambda: bool(verifier.requests) and bool(other.requests))
        verifier.script.faults.clear()
        other.script.faults.clear()
        done = await request
        assert done.choices[0].message.content == TEXT
        session = (await gateway.http.get("/v1/sessions/s")).json()
        last = max([*verifier.requests, *other.requests], key=lambda r: r.epoch)
        owner = verifier if last in verifier.requests else other
        assert session["verifier"] == owner.address
        assert session["epoch"] == last.epoch


async def test_the_same_verifier_comes_back(serve: Serve, verifier: FakeVerifier) -> None:
    verifier.script.delay = 0.05
    verifier.script.draw = saying(list(range(100, 160)))
    async with serve(verifier) as gateway:
        stream = await gateway.client.chat.completions.create(
            model="default",
            messages=HI,
            stream=True,
            extra_body={"return_token_ids": True},
        )
        tokens: list[int] = []
        restarted = None
        port = int(verifier.address.rpartition(":")[2])
        async for chunk in stream:
            extra: dict[str, Any] = chunk.choices[0].model_extra or {}
            tokens += extra.get("token_ids", [])
            if len(tokens) >= 9 and restarted is None:
                await verifier.stop()

                async def restart() -> None:
                    await asyncio.sleep(0.7)
                    await verifier.start(port)

                restarted = asyncio.create_task(restart())
        assert restarted is not None
        await restarted
    assert tokens == list(range(100, 160))


async def test_choices_fail_over_together(serve: Serve, verifier: FakeVerifier) -> None:
    other = twin(verifier)
    async with serve(verifier, other) as gateway:
        for one in (verifier, other):
            one.script.delay = 0.03
        request = asyncio.ensure_future(
            gateway.client.chat.completions.create(model="default", messages=HI, n=4)
        )
        await until(lambda: verifier.running + other.running == 4)
        await asyncio.sleep(0.05)
        victim, heir = (verifier, other) if verifier.running else (other, verifier)
        await victim.stop()
        done = await request
    assert [choice.message.content for choice in done.choices] == [TEXT] * 4
    assert len(heir.requests) == 4
    assert len({r.epoch for r in heir.requests}) == 1
    assert sorted(r.choice_index for r in heir.requests) == [0, 1, 2, 3]


async def test_lost_finish_of_a_complete_output_needs_nobody(
    serve: Serve, verifier: FakeVerifier
) -> None:
    verifier.script.faults = [Fault(3, kind="cut"), Fault(100, kind="cut")]
    async with serve(verifier) as gateway:
        full = await gateway.client.chat.completions.create(
            model="default", messages=HI, max_tokens=9
        )
        ended = await gateway.client.chat.completions.create(model="default", messages=HI)
    assert len(verifier.requests) == 2
    assert full.choices[0].finish_reason == "length"
    assert full.usage is not None
    assert full.usage.completion_tokens == 9
    assert ended.choices[0].finish_reason == "stop"
    assert ended.choices[0].message.content == TEXT


@pytest.mark.parametrize(
    ("code", "status", "calls"),
    [
        (Status.INVALID_ARGUMENT, 400, 1),
        (Status.OUT_OF_RANGE, 400, 1),
        (Status.RESOURCE_EXHAUSTED, 429, 1),
        (Status.UNAVAILABLE, 503, 4),
        (Status.FAILED_PRECONDITION, 503, 4),
        (Status.INTERNAL, 500, 2),
        (Status.DEADLINE_EXCEEDED, 504, 1),
        (Status.UNIMPLEMENTED, 500, 1),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_status_of_what_cannot_be_done(
    serve: Serve,
    verifier: FakeVerifier,
    code: Status,
    status: int,
    calls: int,
    stream: bool,
) -> None:
    verifier.script.faults = [Fault(0, code, "temperature: must be at most 3.") for _ in range(9)]
    async with serve(verifier) as gateway:
        with pytest.raises(openai.APIStatusError) as refused:
            await gateway.client.chat.completions.create(
                model="default", messages=HI, stream=stream
            )
        assert len(verifier.requests) == calls
        verifier.script.faults.clear()
        await gateway.client.chat.completions.create(model="default", messages=HI)
        assert gateway.services.admission.taken == 0
    assert refused.value.status_code == status
    told = "temperature" in refused.value.message
    assert told == (status == 400), "only a refusal's own words are passed on"
    assert (refused.value.response.headers.get("retry-after") == "1") == (status in (429, 503))


async def test_a_busy_verifier_is_passed_over(serve: Serve, verifier: FakeVerifier) -> None:
    other = twin(verifier)
    verifier.script.faults = [Fault(0, Status.RESOURCE_EXHAUSTED)]
    async with serve(verifier, other) as gateway:
        for _ in range(4):
            await gateway.client.chat.completions.create(model="default", messages=HI)
    assert len(verifier.requests) + len(other.requests) == 5


async def test_failure_in_the_middle_is_an_event(serve: Serve, verifier: FakeVerifier) -> None:
    verifier.script.faults = [Fault(2, Status.INVALID_ARGUMENT, "no more")]
    async with serve(verifier) as gateway:
        answer = await gateway.http.post(
            "/v1/chat/completions", json={"messages": HI, "stream": True}
        )
        verifier.script.faults = [Fault(2, Status.INVALID_ARGUMENT, "no more")]
        stream = await gateway.client.chat.completions.create(
            model="default", messages=HI, stream=True
        )
        with pytest.raises(openai.APIError, match="no more"):
            [chunk async for chunk in stream]
    *_, error, done, _ = answer.text.split("\n\n")
    assert json.loads(error.removeprefix("data: "))["error"]["message"] == "no more"
    assert done == "data: [DONE]"


async def test_nobody_comes_back_in_time(serve: Serve, verifier: FakeVerifier) -> None:
    verifier.script.faults = [Fault(1, kind="hang")]
    async with serve(verifier, failover_timeout_s=0.5) as gateway:
        request = asyncio.ensure_future(
            gateway.client.chat.completions.create(model="default", messages=HI)
        )
        await until(lambda: verifier.running == 1)
        await asyncio.sleep(0.05)
        began = time.monotonic()
        await verifier.stop()
        with pytest.raises(openai.InternalServerError) as gone:
            await request
        assert gone.value.status_code == 503
        assert time.monotonic() - began < 3
        # From now on nobody is asked to wait.
        with pytest.raises(openai.InternalServerError) as later:
            await gateway.client.chat.completions.create(model="default", messages=HI)
        assert later.value.status_code == 503
        assert (await gateway.http.get("/readyz")).status_code == 503


async def test_request_timeout(serve: Serve, verifier: FakeVerifier) -> None:
    verifier.script.faults = [Fault(1, kind="hang")]
    async with serve(verifier, request_timeout_s=0.5) as gateway:
        with pytest.raises(openai.InternalServerError) as late:
            await gateway.client.chat.completions.create(model="default", messages=HI)
        await until(lambda: verifier.running == 0)
    assert late.value.status_code == 504


async def test_another_model_is_not_let_in(serve: Serve, verifier: FakeVerifier) -> None:
    model = pb.Model()
    model.CopyFrom(verifier.model)
    model.fingerprint = "another"
    stranger = FakeVerifier(model, verifier.files, verifier.script)
    async with serve(verifier, stranger) as gateway:
        states = list(gateway.services.fleet.verifiers.values())
        await until(lambda: any("it serves" in state.reason for state in states))
        for _ in range(3):
            await gateway.client.chat.completions.create(model="default", messages=HI)
    assert min(len(verifier.requests), len(stranger.requests)) == 0
