"""Streams, byte by byte: when they begin, what keeps them open, what no client may stumble over."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.gateway.conftest import Gateway, Serve, saying, until
from tests.support.fake_verifier import FakeVerifier, Fault

HI: Any = [{"role": "user", "content": "Hi"}]
CHAT = "/v1/chat/completions"
TEXT = "Hello, wörld! 🙂"
PING = ": ping"


def chunks_of(lines: list[str]) -> list[dict[str, Any]]:
    """The documents of a stream, which must end as one does."""
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    return [json.loads(document) for document in data]


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(
        chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"]
    )


async def raw(gateway: Gateway, request: str) -> tuple[list[str], bytes]:
    """Send bytes, and return the head's lines and the body until the connection ends."""
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    # In two parts, the first of which ends within the first line.
    writer.write(request[:9].encode())
    await writer.drain()
    await asyncio.sleep(0.01)
    writer.write(request[9:].encode())
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.decode().lower().split("\r\n"), body


async def test_headers_come_once_the_verifier_has_accepted(
    serve: Serve, verifier: FakeVerifier
) -> None:
    verifier.script.faults = [Fault(kind="hang")]
    async with serve(verifier) as gateway:
        body = {"messages": HI, "stream": True}
        began = time.monotonic()
        async with gateway.http.stream("POST", CHAT, json=body) as answer:
            assert answer.status_code == 200
            assert answer.headers["x-session-id"]
            assert time.monotonic() - began < 5
            await verifier.stop()
            lines = [line async for line in answer.aiter_lines()]
        error = chunks_of(lines)[-1]
        assert error["error"]["type"] == "service_unavailable_error"
        assert gateway.services.admission.taken == 0


@pytest.mark.parametrize("n", [1, 2])
async def test_comments_keep_a_quiet_stream_open(
    serve: Serve, verifier: FakeVerifier, n: int
) -> None:
    verifier.script.delay = 0.1
    async with serve(verifier, keep_alive_s=0.02) as gateway:
        body = {"messages": HI, "n": n, "stream": True}
        answer = await gateway.http.post(CHAT, json=body)
        document = (await gateway.http.post(CHAT, json={**body, "stream": False})).json()
        events = await gateway.client.chat.completions.create(
            model="default", messages=HI, stream=True
        )
        told = "".join([chunk.choices[0].delta.content or "" async for chunk in events])
    lines = answer.text.splitlines()
    assert lines[0] == PING, "before the first token, too"
    assert lines.count(PING) > 5
    assert len(text_of(chunks_of(lines))) == n * len(TEXT)
    assert document["choices"][0]["message"]["content"] == TEXT
    assert told == TEXT


async def test_a_stream_that_says_something_gets_no_comments(
    serve: Serve, verifier: FakeVerifier
) -> None:
    verifier.script.delay = 0.02
    async with serve(verifier) as gateway:
        answer = await gateway.http.post(CHAT, json={"messages": HI, "stream": True})
    assert ": " not in answer.text.replace("data: ", "").replace(", ", "")


async def test_a_silent_verifier_does_not_hold_back_the_headers(
    serve: Serve, verifier: FakeVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = asyncio.Event()
    generate = verifier._frames

    async def late(*arguments: Any) -> Any:
        await release.wait()
        async for frame in generate(*arguments):
            yield frame

    monkeypatch.setattr(verifier, "_frames", late)
    async with serve(verifier, keep_alive_s=0.05) as gateway:
        body = {"messages": HI, "stream": True}
        async with gateway.http.stream("POST", CHAT, json=body) as answer:
            lines = answer.aiter_lines()
            assert await anext(lines) == PING
            release.set()
            assert text_of(chunks_of([line async for line in lines])) == TEXT
        # A client that leaves before anything was said takes its call with it.
        release.clear()
        async with gateway.http.stream("POST", CHAT, json=body):
            assert verifier.running == 1
        await until(lambda: verifier.running == 0 and gateway.services.admission.taken == 0)


async def test_refusals_before_the_beginning_keep_their_status(
    serve: Serve, verifier: FakeVerifier
) -> None:
    async with serve(verifier, max_concurrent_requests=1) as gateway:
        too_many = await gateway.http.post(CHAT, json={"messages": HI, "stream": True, "n": 2})
        await verifier.stop()
        await until(lambda: gateway.services.unready() is not None)
        nobody = await gateway.http.post(CHAT, json={"messages": HI, "stream": True})
    assert (too_many.status_code, nobody.status_code) == (400, 503)


async def test_no_line_ends_within_an_event(
    serve: Serve, verifier: FakeVerifier, tokenizer: Tokenizer
) -> None:
    said = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\rj\nk"
    verifier.script.draw = saying(tokenizer.encode(said).ids)
    async with serve(verifier) as gateway:
        stream = await gateway.http.post(CHAT, json={"messages": HI, "stream": True})
        document = await gateway.http.post(CHAT, json={"messages": HI})
    lines = stream.text.splitlines()
    assert all(not line or line.startswith("data: ") for line in lines)
    assert text_of(chunks_of(lines)) == said
    assert len(document.text.splitlines()) == 1
    assert document.json()["choices"][0]["message"]["content"] == said


async def test_usage_in_every_chunk(serve: Serve, verifier: FakeVerifier) -> None:
    async with serve(verifier) as gateway:
        options = {"include_usage": True, "continuous_usage_stats": True}
        body = {"messages": HI, "stream": True, "stream_options": options}
        answer = await gateway.http.post(CHAT, json=body)
    chunks = chunks_of(answer.text.splitlines())
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] == verifier.script.round_size
    assert counts[-1] > counts[0]
    assert not chunks[-1]["choices"]
    prompt = len(verifier.requests[0].tokens)
    assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {prompt}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_every_version_of_http_is_answered_in_its_own_way(
    serve: Serve, verifier: FakeVerifier, version: str, stream: bool
) -> None:
    body = json.dumps({"messages": HI, "stream": stream})
    request = (
        f"POST {CHAT} HTTP/{version}\r\nHost: x\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    )
    async with serve(verifier) as gateway:
        head, answer = await raw(gateway, request)
    assert head[0].endswith(" 200 ok")
    assert "connection: close" in head
    chunked = "transfer-encoding: chunked" in head
    assert chunked == (stream and version == "1.1")
    if not stream:
        assert json.loads(answer)["choices"][0]["message"]["content"] == TEXT
    elif not chunked:
        assert text_of(chunks_of(answer.decode().splitlines())) == TEXT
