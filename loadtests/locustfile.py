"""Users of the REST interface for Locust.

    locust -f loadtests/locustfile.py --headless -u 8 -r 2 -t 60s --host http://127.0.0.1:8000

HOLDCOURSE_PROMPTS names a file of JSON lines with `turns`; HOLDCOURSE_API_KEY is presented;
HOLDCOURSE_MAX_TOKENS limits outputs (128). The exit status follows from
HOLDCOURSE_SLO_TTFT_P95_MS, HOLDCOURSE_SLO_CHUNK_GAP_P95_MS and HOLDCOURSE_SLO_FAILED_PERCENT (0).
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from locust import HttpUser, between, events, task
from locust.env import Environment

from loadtests.common.prompts import Prompt, load_prompts
from loadtests.slo import CHUNK_GAP, TTFT, judge, read_objectives
from specserve.settings import StartError

TURNS = (
    ("What makes bread rise?", "And what happens if I forget the salt?"),
    ("Explain to a child why the sky is blue.", "Now in one sentence."),
    ("Write a function in Python that reverses a linked list.", "Add type hints to it."),
    ("List five uses for an old bicycle tyre.", "Which of them needs no tools?"),
)
Message = dict[str, str]


def _prompts() -> list[Prompt]:
    if path := os.environ.get("HOLDCOURSE_PROMPTS"):
        return load_prompts(path)
    return [Prompt(str(number), turns) for number, turns in enumerate(TURNS, start=1)]


try:
    PROMPTS, OBJECTIVES = _prompts(), read_objectives(os.environ)
    MAX_TOKENS = int(os.environ.get("HOLDCOURSE_MAX_TOKENS") or 128)
except (StartError, ValueError) as error:
    sys.exit(f"locustfile: {error}")


class GatewayUser(HttpUser):
    """What all users share: the key, and streams that are watched chunk by chunk."""

    abstract = True
    wait_time = between(0.1, 1.0)

    def on_start(self) -> None:
        if key := os.environ.get("HOLDCOURSE_API_KEY"):
            self.client.headers["Authorization"] = f"Bearer {key}"

    def stream(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> str | None:
        """Stream an answer and report when its chunks came; None where it failed."""
        sent = {"model": "default", "max_tokens": MAX_TOKENS, "stream": True, **body}
        began = last = time.perf_counter()
        text: list[str] = []
        with self.client.post(
            path, json=sent, headers=headers, stream=True, catch_response=True
        ) as response:
            if response.status_code != 200:
                response.failure(f"{response.status_code}: {response.text[:200]}")
                return None
            try:
                # With no chunk size every piece is handed on as soon as it comes.
                for line in response.iter_lines(chunk_size=None):
                    if line == b"data: [DONE]":
                        # Locust's own time ends with the headers.
                        whole = (time.perf_counter() - began) * 1e3
                        response.request_meta["response_time"] = whole
                        return "".join(text)
                    if piece := _text(line):
                        now = time.perf_counter()
                        self.report(CHUNK_GAP if text else TTFT, now - (last if text else began))
                        last = now
                        text.append(piece)
            except (OSError, ValueError) as error:
                response.failure(f"the stream broke: {error}")
                return None
            response.failure("the stream was cut off")
        return None

    def report(self, name: str, seconds: float) -> None:
        """Enter a measurement of this user's own into the statistics."""
        self.environment.events.request.fire(
            request_type="SSE",
            name=name,
            response_time=seconds * 1e3,
            response_length=0,
            exception=None,
            context={},
        )


def _text(line: bytes) -> str:
    """The text of an event, empty where it has none.

    Raises:
        ValueError: the event is an error.
    """
    if not line.startswith(b"data: "):
        return ""
    event = json.loads(line[6:])
    if "error" in event:
        raise ValueError(event["error"].get("message", "no message"))
    texts = [c.get("text") or c.get("delta", {}).get("content") or "" for c in event["choices"]]
    return "".join(texts)


class ChatUser(GatewayUser):
    """Asks one question at a time."""

    weight = 3

    @task
    def ask(self) -> None:
        message = {"role": "user", "content": random.choice(PROMPTS).text}
        self.stream("/v1/chat/completions", {"messages": [message]})


class SessionUser(GatewayUser):
    """Goes through all turns of a conversation in one session."""

    weight = 2

    @task
    def converse(self) -> None:
        headers = {"x-session-id": f"load-{uuid4().hex}"}
        messages: list[Message] = []
        for turn in random.choice(PROMPTS).turns:
            messages.append({"role": "user", "content": turn})
            answer = self.stream("/v1/chat/completions", {"messages": messages}, headers)
            if answer is None:
                return
            messages.append({"role": "assistant", "content": answer})


class CompletionUser(GatewayUser):
    """Continues a text, without a stream."""

    weight = 1

    @task
    def complete(self) -> None:
        body = {
            "model": "default",
            "prompt": random.choice(PROMPTS).text,
            "max_tokens": MAX_TOKENS,
        }
        self.client.post("/v1/completions", json=body)


def check_objectives(environment: Environment, **_: object) -> None:
    """Set the exit status by the objectives."""
    stats = environment.stats
    asked = [entry for (_, method), entry in stats.entries.items() if method != "SSE"]
    requests = sum(entry.num_requests for entry in asked)
    failed = sum(entry.num_failures for entry in asked)
    measured = {name: stats.get(name, "SSE") for name in (TTFT, CHUNK_GAP)}
    p95 = {
        name: float(entry.get_response_time_percentile(0.95))
        for name, entry in measured.items()
        if entry.num_requests
    }
    broken = judge(OBJECTIVES, p95, 100 * failed / requests if requests else None)
    for sentence in broken:
        print(f"Objective missed: {sentence}", file=sys.stderr)
    environment.process_exit_code = 1 if broken else 0


events.quitting.add_listener(check_objectives)  # type: ignore[no-untyped-call] # locust leaves it so
