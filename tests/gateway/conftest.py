"""A served model with a byte-level tokenizer, and a gateway on a real port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import httpx
import openai
import pytest
import uvicorn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from gateway.api.app import create_app
from gateway.app_state import AppState
from gateway.server import configure
from gateway.settings import GatewaySettings
from specwire.v1 import verifier_pb2 as pb
from tests.support.fake_verifier import Draw, FakeVerifier, Script
from tests.support.valkey import Valkey

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "Größe, naïve café, 東京タワー, Привет мир, 🙂🚀 — “quotes”.",
    "def main():\n    return 42\n",
]
BOS, START, END = 0, 1, 2


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Byte-level BPE: every byte is a token, and frequent pairs are."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|bos|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def files(tokenizer: Tokenizer) -> dict[str, bytes]:
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "special": True},
        "chat_template": TEMPLATE,
    }
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }


@pytest.fixture
def model(tokenizer: Tokenizer, files: dict[str, bytes]) -> pb.Model:
    return pb.Model(
        name="someone/tiny-model",
        fingerprint="0123456789abcdef0123",
        dtype="float32",
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=8,
        num_layers=2,
        max_model_len=512,
        max_sequences=8,
        max_top_logprobs=5,
        max_draft_tokens=8,
        eos_token_ids=[END],
        tokenizer_files=sorted(files),
        version="0.1.0",
        speculation=True,
    )


def saying(ids: list[int], end: int = END) -> Draw:
    """Draws `ids` behind the prompt, then `end` for ever."""

    def draw(request: pb.GenerateRequest, index: int) -> int:
        at = index - request.output_start
        return ids[at] if at < len(ids) else end

    return draw


@pytest.fixture
async def verifier(
    model: pb.Model, files: dict[str, bytes], tokenizer: Tokenizer
) -> AsyncIterator[FakeVerifier]:
    """Says "Hello, wörld! 🙂" and ends."""
    text = tokenizer.encode("Hello, wörld! 🙂", add_special_tokens=False).ids
    fake = FakeVerifier(model, files, Script(saying(text)))
    yield fake
    await fake.stop()


@dataclass
class Gateway:
    """A gateway that serves on a port of its own."""

    url: str
    http: httpx.AsyncClient
    client: openai.AsyncOpenAI
    services: AppState


Serve = Callable[..., AbstractAsyncContextManager[Gateway]]


@pytest.fixture
def serve(valkey: Valkey) -> Serve:
    """Start verifiers and a gateway before them: `async with serve(verifier) as gateway`."""

    @asynccontextmanager
    async def run(
        *verifiers: FakeVerifier, ready: bool = True, **flags: object
    ) -> AsyncIterator[Gateway]:
        for verifier in verifiers:
            if not verifier.address:
                await verifier.start()
        values = {"redis_url": valkey.url, "failover_timeout_s": 10.0, **flags}
        values.setdefault("verifiers", ",".join(v.address for v in verifiers))
        app = create_app(GatewaySettings.model_validate(values))
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(configure(app))
        task = asyncio.create_task(server._serve([listener]))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with httpx.AsyncClient(base_url=url, timeout=20, verify=False) as http:
            await until(lambda: server.started or task.done())
            client = openai.AsyncOpenAI(
                base_url=f"{url}/v1",
                api_key="none",
                max_retries=0,
                http_client=openai.DefaultAsyncHttpxClient(verify=False, timeout=20),
            )
            services: AppState = app.state.services
            if ready:
                await until(lambda: services.unready() is None)
            try:
                yield Gateway(url, http, client, services)
            finally:
                await client.close()
                await http.aclose()
                server.should_exit = True
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait_for(task, 10)
                for verifier in verifiers:
                    await verifier.stop()

    return run


async def until(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    """Wait for `condition` to hold."""
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)
