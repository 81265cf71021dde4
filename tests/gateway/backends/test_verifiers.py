"""What the gateway learns from verifiers, and when it believes it."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from specwire.v1 import verifier_pb2 as pb
from tests.gateway.conftest import Serve, until
from tests.support.fake_verifier import FakeVerifier, Fault

HI: Any = [{"role": "user", "content": "Hi"}]
CHAT = "/v1/chat/completions"


async def restart(verifier: FakeVerifier) -> None:
    port = int(verifier.address.rpartition(":")[2])
    await verifier.stop()
    await verifier.start(port)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("tokenizer.json", b"{}", "tokenizer.json cannot be read"),
        ("tokenizer.json", b"\xff", "tokenizer.json cannot be read"),
        ("tokenizer_config.json", b"[", "tokenizer_config.json cannot be read"),
        ("chat_template.jinja", b"{% for %}", "template is broken"),
        ("chat_template.jinja", b"\xff", "decode"),
        ("special_tokens_map.json", None, "did not send all of special_tokens_map.json"),
    ],
)
async def test_a_bad_description_is_told_and_forgiven(
    serve: Serve, verifier: FakeVerifier, name: str, data: bytes | None, words: str
) -> None:
    good = dict(verifier.files)
    if data is None:
        verifier.model.tokenizer_files.append(name)
    else:
        verifier.files[name] = data
    async with serve(verifier, ready=False) as gateway:
        [state] = gateway.services.fleet.verifiers.values()
        await until(lambda: words in state.reason)
        answer = await gateway.http.get("/readyz")
        assert answer.status_code == 503
        assert words in answer.json()["reason"]
        assert (await gateway.http.post(CHAT, json={"messages": HI})).status_code == 503
        verifier.files = good
        verifier.model.tokenizer_files[:] = sorted(good)
        await until(lambda: state.up)
        assert (await gateway.http.post(CHAT, json={"messages": HI})).status_code == 200


async def test_limits_follow_a_restart(serve: Serve, verifier: FakeVerifier) -> None:
    body = {"prompt": [5] * 100, "max_tokens": 1}
    async with serve(verifier) as gateway:
        [state] = gateway.services.fleet.verifiers.values()
        before = await gateway.http.post("/v1/completions", json=body)
        verifier.model.max_model_len = 100
        await restart(verifier)
        await until(lambda: state.up and gateway.services.fleet.model.max_len == 100)
        after = await gateway.http.post("/v1/completions", json=body)
    assert before.status_code == 200
    assert after.json()["error"]["code"] == "context_length_exceeded"


async def test_a_new_model_takes_over_when_the_old_is_gone(
    serve: Serve, verifier: FakeVerifier
) -> None:
    async with serve(verifier) as gateway:
        [state] = gateway.services.fleet.verifiers.values()
        new = pb.Model()
        new.CopyFrom(verifier.model)
        new.name, new.fingerprint = "other/newer", "fedcba"
        new.device, new.kernels = "cpu", "avx2"
        verifier.model = new
        await restart(verifier)
        await until(lambda: state.up and gateway.services.fleet.model.name == "newer")
        listed = (await gateway.http.get("/v1/models")).json()["data"]
        assert [card["id"] for card in listed] == ["newer"]
        assert (listed[0]["device"], listed[0]["kernels"]) == ("cpu", "avx2")
        assert (await gateway.http.post(CHAT, json={"messages": HI})).status_code == 200


async def test_refusals_name_the_session(serve: Serve, verifier: FakeVerifier) -> None:
    verifier.script.faults = [Fault(0, grpc.StatusCode.INVALID_ARGUMENT, "no.")]
    async with serve(verifier) as gateway:
        answer = await gateway.http.post(
            CHAT, json={"messages": HI}, headers={"x-session-id": "mine"}
        )
    assert answer.status_code == 400
    assert answer.headers["x-session-id"] == "mine"
