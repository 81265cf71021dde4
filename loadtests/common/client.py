"""The REST interface as the load tests use it: httpx, streamed, token ids included."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

from loadtests.common.result import RequestFailed, Result
from specserve.settings import StartError

TIMEOUT = httpx.Timeout(600.0, connect=5.0)  # seconds

OnTokens = Callable[[int], None]
Message = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Served:
    """The model behind a gateway, as its card describes it."""

    name: str
    dtype: str
    fingerprint: str
    card: Mapping[str, Any]


@dataclass(slots=True)
class Collector:
    """Puts a streamed answer together. Times are of `time.perf_counter`."""

    started: float
    on_tokens: OnTokens | None = None
    tokens: list[int] = field(default_factory=list)
    chunks: list[tuple[float, int]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    report: Mapping[str, Any] | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)

    def take(self, event: Mapping[str, Any], now: float) -> None:
        """Take one event of the stream.

        Raises:
            RequestFailed: it is an error.
        """
        if "error" in event:
            raise RequestFailed(f"the stream ended with: {event['error'].get('message')}")
        for choice in event["choices"]:
            if ids := choice.get("token_ids"):
                self.tokens.extend(ids)
                self.chunks.append((now - self.started, len(ids)))
                if self.on_tokens is not None:
                    self.on_tokens(len(self.tokens))
            self.text.append(choice["delta"].get("content") or "")
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        self.report = event.get("holdcourse") or self.report
        self.usage = event.get("usage") or self.usage

    def result(self, now: float) -> Result:
        """The whole answer.

        Raises:
            RequestFailed: a part of it is missing.
        """
        if self.finish_reason is None or self.report is None:
            raise RequestFailed("the answer lacks its finish_reason or its holdcourse object.")
        seconds = now - self.started
        return Result(
            tuple(self.tokens),
            seconds,
            self.finish_reason,
            tuple(self.chunks),
            self.report,
            "".join(self.text),
            self.usage,
        )


class Client:
    """Talks to one gateway."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._url = url.rstrip("/")
        self._http = httpx.AsyncClient(
            base_url=self._url,
            headers=headers,
            timeout=TIMEOUT,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=False,  # a proxy would be measured too
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def served(self) -> Served:
        """Ask which model is served.

        Raises:
            StartError: nothing that answers is there, or it is not a gateway of ours.
        """
        try:
            response = await self._http.get("/v1/models")
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise StartError(
                f"Nothing answers at {self._url} ({error}); start the services, or give --url."
            ) from None
        if response.status_code != httpx.codes.OK:
            raise StartError(f"{self._url}/v1/models: {_sentence(response)}")
        try:
            card = response.json()["data"][0]
            return Served(card["id"], card["dtype"], card["fingerprint"], card)
        except (ValueError, LookupError, TypeError):
            raise StartError(
                f"{self._url}/v1/models does not describe a model as Holdcourse does."
            ) from None

    async def tokenize(self, text: str) -> list[int]:
        """The tokens of a conversation whose only message is `text`, chat template included.

        Raises:
            StartError: the gateway refuses.
        """
        body = {"messages": [{"role": "user", "content": text}]}
        try:
            response = await self._http.post("/tokenize", json=body)
        except httpx.TransportError as error:
            raise StartError(f"{self._url}/tokenize: {error or type(error).__name__}.") from None
        if response.status_code != httpx.codes.OK:
            raise StartError(f"{self._url}/tokenize: {_sentence(response)}")
        tokens: list[int] = response.json()["tokens"]
        return tokens

    async def chat(
        self,
        text: str,
        *,
        max_tokens: int,
        speculation: bool | Mapping[str, Any],
        history: Sequence[Message] = (),
        cache_salt: str | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        ignore_eos: bool = False,
        on_tokens: OnTokens | None = None,
    ) -> Result:
        """Stream the answer to one message; `on_tokens` gets the number so far after each chunk.

        Only a request with the same `cache_salt` and `history` finds cached what an earlier one
        computed. Without a salt nobody does: what one arm asked must not make another one faster.

        Raises:
            RequestFailed: refused, broken off, or an answer that lacks something.
        """
        body = {
            "messages": [*history, {"role": "user", "content": text}],
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
            "ignore_eos": ignore_eos,
            "speculation": speculation,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "cache_salt": cache_salt or secrets.token_hex(8),
        }
        collector = Collector(time.perf_counter(), on_tokens)
        try:
            async with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    await response.aread()
                    raise RequestFailed(_sentence(response))
                async for line in response.aiter_lines():
                    if line == "data: [DONE]":
                        return collector.result(time.perf_counter())
                    if line.startswith("data: "):
                        collector.take(json.loads(line[6:]), time.perf_counter())
        except httpx.TransportError as error:
            raise RequestFailed(
                f"the connection failed: {error or type(error).__name__}."
            ) from error
        raise RequestFailed("the stream was cut off.")


def _sentence(response: httpx.Response) -> str:
    """What an answer other than success says, in one sentence."""
    try:
        return f"{response.status_code}, {response.json()['error']['message']}"
    except (ValueError, LookupError, TypeError):
        return f"{response.status_code} {response.reason_phrase}."
