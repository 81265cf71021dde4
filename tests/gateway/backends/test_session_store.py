"""Placement and epochs, against a real Valkey."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from gateway.backends.session_store import SessionStore
from tests.gateway.conftest import Serve, until
from tests.support.fake_verifier import FakeVerifier, Script
from tests.support.valkey import Valkey

HI: Any = [{"role": "user", "content": "Hi"}]


@pytest.fixture
async def sessions(valkey: Valkey) -> AsyncIterator[SessionStore]:
    async with watched(valkey.url, "gateway-a") as store:
        yield store


@asynccontextmanager
async def watched(url: str, gateway: str) -> AsyncIterator[SessionStore]:
    store = SessionStore(url, 60, gateway)
    watch = asyncio.create_task(store.watch())
    await until(lambda: store.up)
    yield store
    watch.cancel()
    await store.close()


async def test_a_session_stays_where_it_was(sessions: SessionStore) -> None:
    first = await sessions.place("s", ["a:1", "b:1"])
    again = await sessions.place("s", ["b:1", "a:1"])
    moved = await sessions.place("s", ["b:1"])
    assert (first.verifier, again.verifier, moved.verifier) == ("a:1", "a:1", "b:1")
    assert first.epoch < again.epoch < moved.epoch


async def test_gateways_agree(sessions: SessionStore, valkey: Valkey) -> None:
    async with watched(valkey.url, "gateway-b") as other:
        mine = await sessions.place("s", ["a:1", "b:1"])
        theirs = await other.place("s", ["b:1", "a:1"])
        assert theirs.verifier == "a:1"
        assert theirs.epoch > mine.epoch
        await other.count("s", 77)
        record = await sessions.get("s")
        assert record is not None
        assert (record.gateway, record.turns, record.tokens) == ("gateway-b", 1, 77)
        assert record.epoch == theirs.epoch


async def test_epochs_rise_under_contention(sessions: SessionStore) -> None:
    placed = await asyncio.gather(*(sessions.place("s", ["a:1"]) for _ in range(200)))
    assert len({record.epoch for record in placed}) == 200


async def test_epoch_is_time_but_never_falls(sessions: SessionStore, valkey: Valkey) -> None:
    now = time.time_ns() // 1000
    placed = await sessions.place("s", ["a:1"])
    assert abs(placed.epoch - now) < 60_000_000
    ahead = now + 10**12
    async with redis.asyncio.from_url(valkey.url) as client:
        await client.hset("holdcourse:session:s", "epoch", ahead)
    assert (await sessions.place("s", ["a:1"])).epoch == ahead + 1


async def test_records_expire(valkey: Valkey) -> None:
    store = SessionStore(valkey.url, 0.2, "gateway")
    store.up = True
    await store.place("s", ["a:1", "b:1"])
    assert await store.get("s") is not None
    await asyncio.sleep(0.3)
    assert await store.get("s") is None
    assert (await store.place("s", ["b:1", "a:1"])).verifier == "b:1"
    await store.close()


async def test_a_deleted_session_stays_deleted(sessions: SessionStore) -> None:
    await sessions.place("s", ["a:1"])
    assert await sessions.delete("s")
    await sessions.count("s", 5)
    assert await sessions.get("s") is None
    assert not await sessions.delete("s")


async def test_losing_the_store_degrades_placement_only() -> None:
    with tempfile.TemporaryDirectory(prefix="valkey-") as folder:
        server = Valkey(Path(folder))
        server.start()
        async with watched(server.url, "gateway") as store:
            first = await store.place("s", ["a:1", "b:1"])
            server.kill()
            began = time.monotonic()
            second = await store.place("s", ["b:1", "a:1"])
            third = await store.place("s", ["b:1", "a:1"])
            await store.count("s", 9)
            remembered = await store.get("s")
            assert time.monotonic() - began < 1
            assert not store.up
            assert second.verifier == third.verifier == "a:1", "this gateway's last view"
            assert first.epoch < second.epoch < third.epoch
            assert remembered is not None
            assert remembered.tokens == 9
            server.start()
            await until(lambda: store.up, timeout=5)
            fourth = await store.place("s", ["b:1", "a:1"])
            assert fourth.epoch > third.epoch, "an emptied store does not roll epochs back"
        server.stop()


async def test_requests_outlive_the_store(serve: Serve, verifier: FakeVerifier) -> None:
    with tempfile.TemporaryDirectory(prefix="valkey-") as folder:
        server = Valkey(Path(folder))
        server.start()
        async with serve(verifier, redis_url=server.url) as gateway:
            verifier.script.delay = 0.05
            running = asyncio.create_task(
                gateway.client.chat.completions.create(model="default", messages=HI)
            )
            await until(lambda: verifier.running == 1)
            server.kill()
            assert (await running).choices[0].finish_reason == "stop"
            after = await gateway.client.chat.completions.create(model="default", messages=HI)
            assert after.choices[0].finish_reason == "stop"
            ready = await gateway.http.get("/readyz")
            assert ready.status_code == 200
            assert ready.json()["redis"] == "down"


async def test_turns_of_a_session_go_to_one_verifier(serve: Serve, verifier: FakeVerifier) -> None:
    other = FakeVerifier(verifier.model, verifier.files, Script(verifier.script.draw))
    async with serve(verifier, other) as gateway:
        await until(lambda: all(v.up for v in gateway.services.fleet.verifiers.values()))
        for turn in range(4):
            await gateway.client.chat.completions.create(
                model="default", messages=HI, extra_headers={"x-session-id": "s"}
            )
            # The other one is less loaded now, if anything.
            gateway.services.fleet.verifiers[verifier.address].running = turn % 2
            gateway.services.fleet.verifiers[other.address].running = (turn + 1) % 2
        for count in (verifier, other):
            gateway.services.fleet.verifiers[count.address].running = 0
        assert sorted([len(verifier.requests), len(other.requests)]) == [0, 4]

        async def record() -> dict[str, Any]:
            document: dict[str, Any] = (await gateway.http.get("/v1/sessions/s")).json()
            return document

        async with asyncio.timeout(5):
            while (await record())["turns"] < 4:
                await asyncio.sleep(0.01)
        assert (await record())["tokens"] > len(HI)
        deleted = await gateway.http.delete("/v1/sessions/s")
        assert deleted.json()["deleted"]
        assert (await gateway.http.get("/v1/sessions/s")).status_code == 404


async def test_new_sessions_go_where_least_is_running(serve: Serve, verifier: FakeVerifier) -> None:
    other = FakeVerifier(verifier.model, verifier.files, Script(verifier.script.draw))
    for one in (verifier, other):
        one.script.delay = 0.1
    async with serve(verifier, other) as gateway:
        await until(lambda: all(v.up for v in gateway.services.fleet.verifiers.values()))
        requests = []
        for started in range(1, 7):
            requests.append(
                asyncio.create_task(
                    gateway.client.chat.completions.create(model="default", messages=HI)
                )
            )
            await until(lambda: verifier.running + other.running == started)  # noqa: B023
        await asyncio.gather(*requests)
    assert len(verifier.requests) == len(other.requests) == 3
