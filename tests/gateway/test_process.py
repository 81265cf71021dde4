"""The gateway as a process: start, stop, and what it must not import."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.settings import GatewaySettings
from specserve.settings import StartError
from tests.gateway.conftest import saying, until
from tests.support.fake_verifier import FakeVerifier
from tests.support.ports import free_port
from tests.support.process import ROOT, spawn
from tests.support.valkey import Valkey

ENVIRONMENT = {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
HI: Any = [{"role": "user", "content": "Hi"}]
# Runs the module as `python -m` does, then says what has been imported.
CENSUS = """
import runpy, sys
try:
    runpy.run_module("gateway", run_name="__main__", alter_sys=True)
finally:
    heavy = {"torch", "transformers", "tensorflow", "scipy"} & set(sys.modules)
    print("CENSUS", sorted(heavy), flush=True)
"""


class Process:
    """`python -m gateway` before `verifier`."""

    def __init__(self, verifier: FakeVerifier, valkey: Valkey, log: Path, *flags: str) -> None:
        self.port = free_port()
        self.log = log
        arguments = ["--port", str(self.port), "--verifiers", verifier.address, *flags]
        environment = {**ENVIRONMENT, "HOLDCOURSE_REDIS_URL": valkey.url}
        self.process = spawn([sys.executable, "-c", CENSUS, *arguments], log, environment)
        self.http = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}", timeout=20, verify=False
        )

    async def ready(self, status: int = 200) -> None:
        async with asyncio.timeout(20):
            while self.process.poll() is None:
                try:
                    if (await self.http.get("/readyz")).status_code == status:
                        return
                except httpx.ConnectError:
                    pass
                await asyncio.sleep(0.05)
        raise AssertionError(self.log.read_text())

    async def exit_status(self) -> int:
        await until(lambda: self.process.poll() is not None, timeout=15)
        await self.http.aclose()
        status: int = self.process.wait()
        return status


async def test_serves_without_torch_and_logs_json(
    verifier: FakeVerifier, valkey: Valkey, tmp_path: Path
) -> None:
    await verifier.start()
    gateway = Process(verifier, valkey, tmp_path / "log")
    await gateway.ready()
    body = {"messages": HI, "logprobs": True}
    answer = await gateway.http.post(
        "/v1/chat/completions", json=body, headers={"x-request-id": "find-me"}
    )
    assert answer.json()["choices"][0]["message"]["content"] == "Hello, wörld! 🙂"
    await verifier.stop()
    await gateway.ready(503)
    gateway.process.send_signal(signal.SIGTERM)
    assert await gateway.exit_status() == 0
    lines = gateway.log.read_text().splitlines()
    assert "CENSUS []" in lines
    records = [json.loads(line) for line in lines if line.startswith("{")]
    assert any(
        r.get("request_id") == "find-me" and r.get("status") == 200 and r["service"] == "gateway"
        for r in records
    )
    assert len(records) == len(lines) - 1, "every other line is JSON"


async def test_running_requests_end_before_the_process(
    verifier: FakeVerifier, valkey: Valkey, tmp_path: Path
) -> None:
    await verifier.start()
    verifier.script.draw = saying([100] * 400)
    verifier.script.delay = 0.05
    gateway = Process(verifier, valkey, tmp_path / "log")
    await gateway.ready()
    body = {"messages": HI, "max_tokens": 60, "stream": True}
    running = asyncio.create_task(gateway.http.post("/v1/chat/completions", json=body))
    await until(lambda: verifier.running == 1)
    gateway.process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.2)
    ready = await gateway.http.get("/readyz")
    refused = await gateway.http.post("/v1/chat/completions", json=body)
    assert (ready.status_code, refused.status_code) == (503, 503)
    assert (await running).text.endswith("data: [DONE]\n\n")
    assert '"finish_reason":"length"' in (await running).text
    assert await gateway.exit_status() == 0


async def test_after_the_grace_requests_are_told(
    verifier: FakeVerifier, valkey: Valkey, tmp_path: Path
) -> None:
    await verifier.start()
    verifier.script.draw = saying([100] * 400)
    verifier.script.delay = 0.1
    gateway = Process(verifier, valkey, tmp_path / "log", "--drain-grace-s", "0.3")
    await gateway.ready()
    body = {"messages": HI, "max_tokens": 400}
    document = asyncio.create_task(gateway.http.post("/v1/chat/completions", json=body))
    streamed = {**body, "stream": True}
    stream = asyncio.create_task(gateway.http.post("/v1/chat/completions", json=streamed))
    await until(lambda: verifier.running == 2)
    await asyncio.sleep(0.3)
    gateway.process.send_signal(signal.SIGTERM)
    assert (await document).status_code == 503
    assert (await document).json()["error"]["message"] == "The server is stopping; try again."
    assert '"error":{"message":"The server is stopping; try again."' in (await stream).text
    assert await gateway.exit_status() == 0
    await until(lambda: verifier.running == 0)
    assert "Traceback" not in gateway.log.read_text()


def test_a_port_in_use_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = subprocess.run(
            [sys.executable, "-m", "gateway", "--port", port],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=ENVIRONMENT,
            check=False,
        )
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert port in process.stderr
    assert "in use" in process.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--port", "65536"], "--port"),
        (["--verifiers", "somewhere"], "--verifiers: must be HOST:PORT"),
        (["--verifiers", "a:1,a:1"], "--verifiers"),
        (["--verifiers", ","], "--verifiers"),
        (["--redis-url", "http://x"], "--redis-url"),
        (["--max-body-size", "1"], "--max-body-size"),
        (["--max-concurrent-requests", "0"], "--max-concurrent-requests"),
        (["--session-ttl-s", "nan"], "--session-ttl-s"),
        (["--drain-grace-s", "0"], "--drain-grace-s"),
        (["--log-level", "loud"], "--log-level"),
    ],
)
def test_bad_settings_are_named(flags: list[str], words: str) -> None:
    with pytest.raises(StartError, match=words):
        GatewaySettings.read("gateway", flags, {})


def test_settings_come_from_flags_and_environment() -> None:
    environment = {"HOLDCOURSE_VERIFIERS": "a:1, b:2", "HOLDCOURSE_API_KEYS": "x,y"}
    settings = GatewaySettings.read("gateway", ["--max-body-size", "1MiB"], environment)
    assert settings.verifiers == ("a:1", "b:2")
    assert settings.api_keys == ("x", "y")
    assert settings.max_body_size == 1 << 20
    assert settings.port == 8000
