"""The shipped pair on real weights, as `make run` starts it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from deploy.local import default_model
from deploy.local.settings import SHIPPED_DRAFTER, StackSettings
from tests.integration.conftest import wait_until
from tests.support.ports import free_port
from tests.support.process import ROOT, spawn_module

PROMPTS = [
    "Write a short story about a lighthouse keeper.",
    "What is the sum of 17 and 25? Explain each step.",
    "Write a Python function that reverses a string.",
]

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def target() -> Path:
    """The model file, fetched as `make run` does where it is not there yet."""
    cache = StackSettings.read("test", []).cache_folder
    return asyncio.run(default_model.fetch(default_model.SMOLLM2, cache, lambda done, total: None))


@pytest.fixture(scope="module")
def stack(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a stack in fp32 with drafts of 8 tokens, which a request may shorten."""
    folder = tmp_path_factory.mktemp("stack")
    log = folder / "log"
    port = free_port()
    process = spawn_module(
        "deploy.local",
        log=log,
        env={
            "HOLDCOURSE_PORT": str(port),
            "HOLDCOURSE_TARGET": str(target),
            "HOLDCOURSE_DRAFTER": str(SHIPPED_DRAFTER),
            "HOLDCOURSE_DTYPE": "float32",
            "HOLDCOURSE_DRAFT_LENGTH": "8",
            "HOLDCOURSE_DRAFT_DEADLINE_MS": "5000",
            "HOLDCOURSE_MAX_MODEL_LEN": "2048",
        },
    )
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return httpx.get(f"{url}/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    try:
        wait_until(ready, "the stack being ready", 300)
        yield url
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, log.read_text()
    finally:
        process.kill()


def test_text_is_that_of_transformers_at_every_draft_length(
    stack: str, target: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"turns": [text]}) + "\n" for text in PROMPTS))
    command = [
        sys.executable, "-m", "loadtests.exactness", "--prompts", str(prompts),
        "--target", str(target), "--url", stack, "--max-tokens", "24",
    ]  # fmt: skip
    check = subprocess.run(
        command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stdout + check.stderr


def test_two_turns_in_one_session_with_accepted_drafts(stack: str) -> None:
    client: Any = OpenAI(base_url=f"{stack}/v1", api_key="none", max_retries=0)
    headers = {"x-session-id": "two-turns"}
    messages = [{"role": "user", "content": PROMPTS[0]}]
    stream = client.chat.completions.create(
        model="default", messages=messages, max_tokens=64, temperature=0, stream=True,
        extra_headers=headers, stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert len(text.split()) > 20
    assert chunks[-1].usage.completion_tokens_details.accepted_prediction_tokens > 0
    messages += [
        {"role": "assistant", "content": text},
        {"role": "user", "content": "What happens next?"},
    ]
    second = client.chat.completions.create(
        model="default", messages=messages, max_tokens=32, temperature=0, extra_headers=headers
    )
    assert second.choices[0].message.content
    assert httpx.get(f"{stack}/v1/sessions/two-turns").json()["turns"] == 2


def test_the_same_seed_gives_the_same_text_without_a_drafter(stack: str) -> None:
    body = {
        "model": "default", "messages": [{"role": "user", "content": PROMPTS[0]}],
        "max_tokens": 48, "temperature": 1.0, "seed": 11,
    }  # fmt: skip
    texts = [
        httpx.post(
            f"{stack}/v1/chat/completions", json=body | {"speculation": speculation}, timeout=300
        ).json()["choices"][0]["message"]["content"]
        for speculation in (True, False)
    ]
    assert texts[0] == texts[1]
