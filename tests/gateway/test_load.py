"""Overload, clients that go away, draining, and what operators see."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.gateway.conftest import Gateway, Serve, saying, until
from tests.support.fake_verifier import FakeVerifier

HI: Any = [{"role": "user", "content": "Hi"}]
CHAT = "/v1/chat/completions"


@pytest.fixture
def slow(verifier: FakeVerifier) -> FakeVerifier:
    verifier.script.draw = saying([100] * 400)
    verifier.script.delay = 0.02
    return verifier


async def metrics(gateway: Gateway) -> dict[str, float]:
    text = (await gateway.http.get("/metrics")).text
    return {
        sample.name + "".join(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_too_many_at_once(serve: Serve, slow: FakeVerifier) -> None:
    async with serve(slow, max_concurrent_requests=3) as gateway:
        body = {"messages": HI, "n": 2, "max_tokens": 30}
        first = asyncio.create_task(gateway.http.post(CHAT, json=body))
        await until(lambda: slow.running == 2)
        second = await gateway.http.post(CHAT, json=body)
        never = await gateway.http.post(CHAT, json={"messages": HI, "n": 4})
        assert second.status_code == 429
        assert second.headers["retry-after"] == "1"
        assert second.json()["error"]["type"] == "rate_limit_error"
        assert never.status_code == 400
        assert never.json()["error"]["param"] == "n"
        assert (await first).status_code == 200
        assert (await gateway.http.post(CHAT, json=body)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
async def test_a_client_that_goes_away_ends_its_calls(
    serve: Serve, slow: FakeVerifier, stream: bool, n: int
) -> None:
    async with serve(slow) as gateway:
        async with httpx.AsyncClient(base_url=gateway.url, verify=False) as client:
            body = {"messages": HI, "stream": stream, "n": n, "max_tokens": 300}
            request = asyncio.create_task(client.post(CHAT, json=body))
            await until(lambda: slow.running == n)
            await asyncio.sleep(0.1)
            request.cancel()
        await until(lambda: slow.running == 0, timeout=2)
        assert slow.cancelled == n
        await until(lambda: gateway.services.admission.taken == 0)
        values = await metrics(gateway)
        assert values["holdcourse_num_requests_running"] == 0
        assert values["holdcourse_generation_tokens_total"] > 0


async def test_draining_refuses_new_and_ends_old(serve: Serve, slow: FakeVerifier) -> None:
    async with serve(slow) as gateway:
        running = asyncio.create_task(
            gateway.client.chat.completions.create(model="default", messages=HI, max_tokens=60)
        )
        await until(lambda: slow.running == 1)
        drained = asyncio.create_task(gateway.services.admission.drain(10))
        await asyncio.sleep(0)
        with pytest.raises(openai.InternalServerError) as refused:
            await gateway.client.chat.completions.create(model="default", messages=HI)
        assert refused.value.status_code == 503
        ready = await gateway.http.get("/readyz")
        assert (ready.status_code, ready.json()["reason"]) == (503, "shutting down")
        assert not drained.done()
        assert (await running).choices[0].finish_reason == "length"
        assert await drained


async def test_readiness(serve: Serve, verifier: FakeVerifier) -> None:
    async with serve(ready=False, verifiers="127.0.0.1:9") as gateway:
        answer = await gateway.http.get("/readyz")
        assert answer.status_code == 503
        assert "no verifier" in answer.json()["reason"]
        assert (await gateway.http.get("/healthz")).status_code == 200
        assert (await gateway.http.get("/v1/models")).status_code == 503
        chat = await gateway.http.post(CHAT, json={"messages": HI})
        assert chat.status_code == 503
        assert chat.json()["error"]["type"] == "service_unavailable_error"
    missing = "unix:///nowhere/valkey.sock"
    async with serve(verifier, ready=False, redis_url=missing) as gateway:
        await until(lambda: any(v.up for v in gateway.services.fleet.verifiers.values()))
        answer = await gateway.http.get("/readyz")
        assert answer.status_code == 503
        assert "Redis" in answer.json()["reason"]
        assert (await gateway.http.post(CHAT, json={"messages": HI})).status_code == 200


async def test_health_is_asked_for_in_other_servers_words(
    serve: Serve, verifier: FakeVerifier
) -> None:
    async with serve(verifier, api_keys="k") as gateway:
        for path in ("/health", "/ping"):
            answer = await gateway.http.get(path)
            assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
        assert (await gateway.http.get("/version")).json() == {"version": version("holdcourse")}
        gateway.services.admission.draining = True
        refused = await gateway.http.get("/health")
        assert refused.status_code == 503
        assert refused.json()["error"]["message"] == "Shutting down."


async def test_head_is_get_without_a_body(serve: Serve, verifier: FakeVerifier) -> None:
    async with serve(verifier) as gateway:
        paths = ("/healthz", "/readyz", "/metrics", "/health", "/v1/models", "/openapi.json")
        for path in (*paths, "/v1/models/nobody", CHAT):
            head, get = await gateway.http.head(path), await gateway.http.get(path)
            assert head.status_code == get.status_code
            assert head.headers["content-type"] == get.headers["content-type"]
            assert not head.content
            if path != "/metrics":
                assert head.headers["content-length"] == str(len(get.content))
        assert (await gateway.http.delete("/healthz")).headers["allow"] == "GET, HEAD"
        assert (await gateway.http.put("/v1/sessions/x")).headers["allow"] == "DELETE, GET, HEAD"


async def test_a_verifier_that_drains_gets_nothing_new(
    serve: Serve, verifier: FakeVerifier
) -> None:
    async with serve(verifier) as gateway:
        await verifier.health.enter_graceful_shutdown()
        await until(lambda: gateway.services.unready() is not None)
        with pytest.raises(openai.InternalServerError) as refused:
            await gateway.client.chat.completions.create(model="default", messages=HI)
    assert refused.value.status_code == 503
    assert not verifier.requests


async def test_metrics_count_what_happened(serve: Serve, verifier: FakeVerifier) -> None:
    async with serve(verifier) as gateway:
        done = await gateway.client.chat.completions.create(model="default", messages=HI, n=2)
        await gateway.http.post(CHAT, json={"messages": HI, "max_tokens": 1})
        values = await metrics(gateway)
    usage = done.usage
    assert usage is not None
    assert usage.completion_tokens_details is not None
    assert values["holdcourse_request_success_totalstop"] == 2
    assert values["holdcourse_request_success_totallength"] == 1
    assert values["holdcourse_prompt_tokens_total"] == 2 * usage.prompt_tokens
    assert values["holdcourse_generation_tokens_total"] == usage.completion_tokens + 1
    accepted = usage.completion_tokens_details.accepted_prediction_tokens
    rejected = usage.completion_tokens_details.rejected_prediction_tokens
    assert accepted is not None
    assert rejected is not None
    names = [f"holdcourse_spec_decode_num_{what}_tokens_total" for what in ("accepted", "draft")]
    # Each choice began with a lookup of 3 tokens of which 2 stood.
    assert values[names[0] + "lookup"] == 2 * 2
    assert values[names[0] + "chain"] == accepted - 2 * 2
    # The request of one token had a round of one draft, by lookup.
    assert values[names[1] + "lookup"] == 2 * 3 + 1
    assert values[names[1] + "chain"] == accepted + rejected - 2 * 3
    assert values["holdcourse_time_to_first_token_seconds_count"] == 3
    assert values["holdcourse_time_per_output_token_seconds_count"] == 2
    assert values["holdcourse_e2e_request_latency_seconds_count"] == 3
    assert values["holdcourse_verifiers_up"] == 1
    assert values["holdcourse_redis_up"] == 1


async def test_many_streams_at_once(serve: Serve, verifier: FakeVerifier) -> None:
    async def one(gateway: Gateway, n: int) -> str:
        stream = await gateway.client.chat.completions.create(
            model="default", messages=HI, stream=True, n=n
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    verifier.script.delay = 0.001
    async with serve(verifier) as gateway:
        texts = await asyncio.gather(*(one(gateway, 1) for _ in range(40)))
    assert set(texts) == {"Hello, wörld! 🙂"}
