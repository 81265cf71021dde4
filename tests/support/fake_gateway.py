"""A REST server that answers like the gateway, without a model: tokens follow from the prompt."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TIMINGS = {
    "target_us": 8000,
    "draw_us": 1000,
    "drafter_us": 500,
    "drafter_queue_us": 100,
    "wire_us": 200,
    "host_us": 200,
}


@dataclass
class Behaviour:
    """What the server does; tests change it."""

    dtype: str = "float32"
    fingerprint: str = "f" * 64
    # Tokens of a round with an accepted draft; its draft is one token longer.
    accepted: int = 2
    # Prompts that are refused, and whose speculative output differs in its last token.
    refused: str = "refuse"
    differing: str = "differ"
    cut_off: str = "cut off"
    # Outputs by prompt, where they are not to follow from the prompt's length.
    answers: dict[str, list[int]] = field(default_factory=dict)
    # Seconds that a character of the prompt takes that no request of the same salt had before,
    # and seconds between chunks, four times as many while a prompt is so prefilled.
    prefill: float = 0.0
    step: float = 0.0
    prefilling: int = 0
    # What texts are tokenized to.
    tokenized: Callable[[str], list[int]] = lambda _: [3, 4, 5]
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def prompt(self, body: dict[str, Any]) -> tuple[int, int]:
        """Length of a prompt, a token a character, and what of it is cached."""
        texts = [message["content"] for message in body["messages"]]
        salts = {earlier.get("cache_salt") for earlier in self.bodies[:-1]} - {None}
        reused = len(texts) > 1 and body.get("cache_salt") in salts
        return len("".join(texts)), len("".join(texts[:-1])) if reused else 0


def tokens_of(text: str, count: int) -> list[int]:
    return [(len(text) + i) % 50 for i in range(count)]


def report(rounds: int, drafted: int, accepted: int) -> dict[str, Any]:
    return {
        "rounds": rounds,
        "drafted_rounds": drafted,
        "proposed_at": [drafted] * (accepted + 1) if drafted else [],
        "accepted_at": [drafted] * accepted + [0] if drafted else [],
        "lookup_proposed_at": [],
        "lookup_accepted_at": [],
        "failovers": 0,
        "timings": {part: (rounds - 1) * value for part, value in TIMINGS.items()},
    }


class Handler(BaseHTTPRequestHandler):
    behaviour: Behaviour

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            behaviour = self.behaviour
            card = {"id": "fake", "dtype": behaviour.dtype, "fingerprint": behaviour.fingerprint}
            self._json({"data": [card]})
        else:
            self._json({"error": {"message": "There is nothing here."}}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/tokenize":
            self._json({"tokens": self.behaviour.tokenized(body["messages"][-1]["content"])})
        elif self.path == "/v1/completions":
            self._json({"choices": [{"text": "word"}]})
        else:
            with suppress(ConnectionError):  # the client left
                self._chat(body)

    def _chat(self, body: dict[str, Any]) -> None:
        behaviour, text = self.behaviour, body["messages"][-1]["content"]
        behaviour.bodies.append(body)
        if text == behaviour.refused:
            self._json({"error": {"message": "This prompt is refused."}}, 400)
            return
        tokens = behaviour.answers.get(text) or tokens_of(text, body["max_tokens"])
        drafting = body.get("speculation", True) is not False
        if drafting and text == behaviour.differing:
            tokens[-1] += 1
        step = 1 + behaviour.accepted if drafting else 1
        pieces = [tokens[:1], *(tokens[i : i + step] for i in range(1, len(tokens), step))]
        length, cached = behaviour.prompt(body)
        behaviour.prefilling += 1
        time.sleep((length - cached) * behaviour.prefill)
        behaviour.prefilling -= 1
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for ids in pieces:
            time.sleep(behaviour.step * (4 if behaviour.prefilling else 1))
            self._event({"choices": [{"delta": {"content": "w" * len(ids)}, "token_ids": ids}]})
        if text == behaviour.cut_off:
            return
        reason = "length" if len(tokens) == body["max_tokens"] else "stop"
        self._event({"choices": [{"delta": {}, "finish_reason": reason}]})
        drafted = len(pieces) - 1 if drafting else 0
        usage = {"prompt_tokens": length, "prompt_tokens_details": {"cached_tokens": cached}}
        told = report(len(pieces), drafted, behaviour.accepted)
        self._event({"choices": [], "usage": usage, "holdcourse": told})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, value: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
        self.wfile.flush()

    def _json(self, value: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def fake_gateway(behaviour: Behaviour) -> Iterator[str]:
    """Serve on a free port; yields the URL."""
    handler = type("BoundHandler", (Handler,), {"behaviour": behaviour})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
