"""Bad requests: one clear sentence in OpenAI's shape, and nobody else affected."""

from __future__ import annotations

import json
from typing import Any

import grpc
import openai
import pytest
import structlog

from gateway.schema.chat import ChatBody
from tests.gateway.conftest import Serve
from tests.support.fake_verifier import FakeVerifier, Fault

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
JSON = {"content-type": "application/json"}
HI: Any = [{"role": "user", "content": "Hi"}]

BAD_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": "Hi"}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].type",
    ),
    (
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
        "messages[0].tool_calls",
    ),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.type"),
    ({"temperature": "0.5"}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": 1.5}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": True}, "n"),
    ({"seed": 2**64}, "seed"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
    ({"max_completion_tokens": "many"}, "max_completion_tokens"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"repetition_penalty": 3e-38}, "repetition_penalty"),
    ({"repetition_penalty": 101}, "repetition_penalty"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"999999": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {"01": 1}}, "logit_bias"),
    ({"logit_bias": {"1_0": 1}}, "logit_bias"),
    ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
    ({"stop": [""]}, "stop[0]"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": 5}, "stop"),
    ({"stop_token_ids": [100_000]}, "stop_token_ids"),
    ({"stop_token_ids": [*range(65)]}, "stop_token_ids"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 6}, "top_logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"speculation": "on"}, "speculation"),
    ({"speculation": {"max_draft_tokens": -1}}, "speculation.max_draft_tokens"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"no_such_field": 1}, "no_such_field"),
    ({"cache_salt": "\ud800"}, "cache_salt"),
    ({"store": 0.0}, "store"),
    ({"store": 1}, "store"),
    *(
        ({"chat_template_kwargs": {name: "x"}}, "chat_template_kwargs")
        for name in (
            "messages",
            "tools",
            "documents",
            "add_generation_prompt",
            "bos_token",
            "range",
        )
    ),
    ({"chat_template_kwargs": {"messages": [{"content": "\ud800"}]}}, "chat_template_kwargs"),
]
BAD_TEXT: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt[0]"),
    ({"prompt": [5, 100_000]}, "prompt"),
    ({"prompt": {}}, "prompt"),
    ({"prompt": ["\udfff"]}, "prompt[0]"),
    ({"echo": True}, "echo"),
    ({"best_of": 2}, "best_of"),
    ({"best_of": True}, "best_of"),
    ({"suffix": "x"}, "suffix"),
    ({"logprobs": 6}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
]


async def test_bad_fields_are_named(serve: Serve, verifier: FakeVerifier) -> None:
    cases = [(CHAT, {"messages": HI, **extra}, param) for extra, param in BAD_CHAT]
    cases += [(TEXT, {"prompt": "Hi", **extra}, param) for extra, param in BAD_TEXT]
    async with serve(verifier) as gateway:
        for path, body, param in cases:
            answer = await gateway.http.post(path, content=json.dumps(body), headers=JSON)
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (400, param), (body, error)
            assert error["type"] == "invalid_request_error"
            assert error["message"].startswith(f"{param}"), error
            assert error["message"].endswith("."), error
            assert "\n" not in error["message"]
        assert not verifier.requests
        assert (await gateway.http.post(CHAT, json={"messages": HI})).status_code == 200


@pytest.mark.parametrize(
    ("path", "extra", "message"),
    [
        (CHAT, {"messages": []}, "messages: must not be empty."),
        (CHAT, {"stop": ""}, "stop: must not be empty."),
        (CHAT, {"stop": ["a", ""]}, "stop[1]: must not be empty."),
        (CHAT, {"store": True}, "store: not supported."),
        (CHAT, {"tools": [{}]}, "tools: not supported."),
        (
            CHAT,
            {"response_format": {"type": "json_object"}},
            "response_format.type: not supported; must be 'text'.",
        ),
        (
            CHAT,
            {"tool_choice": "required"},
            "tool_choice: not supported; must be 'none' or 'auto'.",
        ),
        (CHAT, {"stop": "x" * 1025}, "stop: at most 1024 characters."),
        (CHAT, {"stop": ["x" * 1025]}, "stop[0]: at most 1024 characters."),
        (CHAT, {"stop": ["x"] * 17}, "stop: at most 16 entries."),
        (CHAT, {"stop": 5}, "stop: must be a string or a list of strings."),
        (CHAT, {"messages": [5]}, "messages[0]: must be an object."),
        (CHAT, {"messages": {}}, "messages: must be a list."),
        (
            CHAT,
            {"messages": [{"role": "user", "content": 5}]},
            "messages[0].content: must be a string or a list of parts.",
        ),
        (CHAT, {"seed": 2**64}, "seed: must be less than 18446744073709551616."),
        (CHAT, {"speculation": 1}, "speculation: must be true, false or an object."),
        (CHAT, {"metadata": {"a": 1, "b": 2}}, "metadata.a: must be a string."),
        (CHAT, {"metadata": {str(n): "x" for n in range(17)}}, "metadata: at most 16 entries."),
        (CHAT, {"a": 1, "b": 2}, "a: this field is not supported."),
        (CHAT, {"x" * 1000: 1}, f"{'x' * 100}...: this field is not supported."),
        (TEXT, {"max_tokens": 2**32}, "max_tokens: must be less than or equal to 4294967295."),
        (TEXT, {"prompt": [-1]}, "prompt[0]: must be greater than or equal to 0."),
        (TEXT, {"prompt": [5, 1.5]}, "prompt[1]: must be an integer."),
        (TEXT, {"prompt": [True]}, "prompt[0]: must be an integer."),
        (TEXT, {"prompt": [[5], [5, "a"]]}, "prompt[1][1]: must be an integer."),
        (TEXT, {"prompt": ["a", 5]}, "prompt[1]: must be a string or a list of token ids."),
        (TEXT, {"prompt": ["a"] * 129}, "prompt: at most 128 entries."),
        (TEXT, {"prompt": 5}, "prompt: must be a string, a list of token ids, or a list of such."),
        (TEXT, {"prompt": []}, "prompt: must not be empty."),
        (TEXT, {"suffix": "x"}, "suffix: not supported."),
        (TEXT, {"best_of": 2}, "best_of: not supported."),
        (TEXT, {"echo": True}, "echo: not supported."),
    ],
)
async def test_refusals_are_said_in_plain_words(
    serve: Serve, verifier: FakeVerifier, path: str, extra: dict[str, Any], message: str
) -> None:
    body = {"messages": HI} if path == CHAT else {"prompt": "Hi"}
    async with serve(verifier) as gateway:
        answer = await gateway.http.post(path, json={**body, **extra})
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)


@pytest.mark.parametrize(
    ("content", "headers", "words"),
    [
        (b'{"messages": [', {"content-type": "application/json"}, "not valid JSON"),
        (b"\xff\xfe", {"content-type": "application/json"}, "body"),
        (b"[1, 2]", {"content-type": "application/json"}, "JSON object"),
        (b"{}", {"content-type": "text/plain"}, "application/json"),
        (b"", {}, "JSON object"),
        (b"[" * 100_000, {"content-type": "application/json"}, "body"),
        (
            b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
            {"content-type": "application/json"},
            "temperature",
        ),
    ],
)
async def test_bodies_that_are_no_request(
    serve: Serve, verifier: FakeVerifier, content: bytes, headers: dict[str, str], words: str
) -> None:
    async with serve(verifier) as gateway:
        answer = await gateway.http.post(CHAT, content=content, headers=headers)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "headers", "message"),
    [
        (b'{"messages":\n "\x01"}', {}, "Invalid control character at line 2, column 3."),
        (b"{}{}", {}, "Extra data at line 1, column 3."),
        (b'"\xe9"', {}, "byte 1 is not UTF-8."),
        (b"[" * 100_000, {}, "The body is nested too deeply to be read."),
        (
            b'{"seed":' + b"9" * 5000 + b"}",
            {},
            "The body has an integer of 5000 characters, at most 100.",
        ),
        (
            b"\x1f\x8b\x08",
            {"content-encoding": "gzip"},
            "Content-Encoding: gzip is not supported; send the body as it is.",
        ),
    ],
)
async def test_bodies_that_cannot_be_read(
    serve: Serve, verifier: FakeVerifier, content: bytes, headers: dict[str, str], message: str
) -> None:
    async with serve(verifier) as gateway:
        answer = await gateway.http.post(CHAT, content=content, headers={**JSON, **headers})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].endswith(message)


async def test_numbers_of_any_length_are_refused_in_a_short_sentence(
    serve: Serve, verifier: FakeVerifier
) -> None:
    numbers = [name for name, field in ChatBody.model_fields.items() if "int" in str(field)]
    assert {"max_tokens", "seed", "n", "top_k", "min_tokens", "stop_token_ids"} <= {*numbers}
    async with serve(verifier) as gateway:
        for name in (*numbers, "temperature", "top_p", "frequency_penalty"):
            for digits in (90, 4299, 5000):
                for value in ("9" * digits, f"-{'9' * digits}", f"[{'9' * digits}]"):
                    body = f'{{"messages": {json.dumps(HI)}, "{name}": {value}}}'
                    answer = await gateway.http.post(CHAT, content=body, headers=JSON)
                    assert answer.status_code == 400, (name, digits)
                    assert "99999" not in answer.text
                    assert len(answer.text) < 300
        answer = await gateway.http.post(CHAT, json={"messages": HI, "model": "m" * 100_000})
    assert answer.status_code == 404
    assert len(answer.text) < 300


async def test_large_bodies(serve: Serve, verifier: FakeVerifier) -> None:
    large = {"messages": [{"role": "user", "content": "x" * 10_000_000}]}

    async def unannounced() -> Any:
        for _ in range(200):
            yield b" " * 65_536

    async with serve(verifier) as gateway:
        announced = await gateway.http.post(CHAT, json=large)
        chunked = await gateway.http.post(
            CHAT, content=unannounced(), headers={"content-type": "application/json"}
        )
        elsewhere = await gateway.http.post("/nowhere", json=large)
        small = await gateway.http.post(CHAT, json={"messages": HI})
    for answer in (announced, chunked, elsewhere):
        assert answer.status_code == 413
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert answer.headers["x-request-id"]
    assert small.status_code == 200


async def test_paths_methods_and_models(serve: Serve, verifier: FakeVerifier) -> None:
    async with serve(verifier) as gateway:
        unknown = await gateway.http.get("/v1/engines")
        method = await gateway.http.get(CHAT)
        with pytest.raises(openai.NotFoundError) as model:
            await gateway.client.chat.completions.create(model="gpt-4", messages=HI)
        for name in ("tiny-model", "someone/tiny-model", "default"):
            card = await gateway.client.models.retrieve(name)
            assert card.id == "tiny-model"
            await gateway.client.chat.completions.create(model=name, messages=HI)
        listed = [card.id async for card in gateway.client.models.list()]
        with pytest.raises(openai.NotFoundError):
            await gateway.client.models.retrieve("gpt-4")
    assert unknown.status_code == 404
    assert unknown.json()["error"]["type"] == "not_found_error"
    assert method.status_code == 405
    assert method.headers["allow"] == "POST"
    assert model.value.code == "model_not_found"
    assert model.value.param == "model"
    assert listed == ["tiny-model"]


async def test_context_is_checked_before_anything_runs(
    serve: Serve, verifier: FakeVerifier
) -> None:
    async with serve(verifier) as gateway:
        with pytest.raises(openai.BadRequestError) as long:
            await gateway.client.chat.completions.create(
                model="default", messages=[{"role": "user", "content": "x y " * 2000}]
            )
        with pytest.raises(openai.BadRequestError) as asked:
            await gateway.client.completions.create(model="default", prompt="x", max_tokens=512)
        ok = await gateway.client.completions.create(model="default", prompt=[5], max_tokens=511)
        # Over the length that is tokenized on a thread.
        with pytest.raises(openai.BadRequestError) as longer:
            await gateway.client.completions.create(model="default", prompt="x y " * 10_000)
    assert long.value.code == asked.value.code == longer.value.code == "context_length_exceeded"
    assert "512 tokens" in long.value.message
    assert ok.choices
    assert len(verifier.requests) == 1


@pytest.mark.parametrize("session", ["", "a b", "x" * 129, "é"])
async def test_bad_session_ids(serve: Serve, verifier: FakeVerifier, session: str) -> None:
    async with serve(verifier) as gateway:
        answer = await gateway.http.post(
            CHAT, json={"messages": HI}, headers=[(b"x-session-id", session.encode())]
        )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "x-session-id"


async def test_keys(serve: Serve, verifier: FakeVerifier) -> None:
    async with serve(verifier, api_keys="secret,other") as gateway:
        for key, status in (("secret", 200), ("other", 200), ("wrong", 401), ("", 401)):
            headers = {"authorization": f"Bearer {key}"} if key else {}
            answer = await gateway.http.post(CHAT, json={"messages": HI}, headers=headers)
            assert answer.status_code == status
        with pytest.raises(openai.AuthenticationError) as refused:
            await gateway.client.chat.completions.create(model="default", messages=HI)
        assert refused.value.code == "invalid_api_key"
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await gateway.http.get(path)).status_code == 200
        assert (await gateway.http.get("/v1/models")).status_code == 401


async def test_template_that_refuses(serve: Serve, verifier: FakeVerifier) -> None:
    verifier.files["chat_template.jinja"] = b"{{ raise_exception('Roles must alternate.') }}"
    async with serve(verifier) as gateway:
        answer = await gateway.http.post(CHAT, json={"messages": HI})
    assert answer.status_code == 400
    assert "Roles must alternate" in answer.json()["error"]["message"]


async def test_a_template_that_repeats_what_it_refuses(
    serve: Serve, verifier: FakeVerifier
) -> None:
    verifier.files["chat_template.jinja"] = b"{{ raise_exception(messages[0].content) }}"
    async with serve(verifier) as gateway:
        body = {"messages": [{"role": "user", "content": "x" * 100_000}]}
        answer = await gateway.http.post(CHAT, json=body)
    assert answer.status_code == 400
    assert len(answer.text) < 600


async def test_model_without_a_template(serve: Serve, verifier: FakeVerifier) -> None:
    del verifier.files["tokenizer_config.json"]
    verifier.model.tokenizer_files.remove("tokenizer_config.json")
    async with serve(verifier) as gateway:
        chat = await gateway.http.post(CHAT, json={"messages": HI})
        text = await gateway.http.post(TEXT, json={"prompt": "Hi"})
    assert chat.status_code == 400
    assert "no chat template" in chat.json()["error"]["message"]
    assert text.status_code == 200


async def test_tokenize_and_back(serve: Serve, verifier: FakeVerifier) -> None:
    async with serve(verifier) as gateway:
        text = (
            await gateway.http.post(
                "/tokenize", json={"prompt": "Größe 🙂", "return_token_strs": True}
            )
        ).json()
        back = await gateway.http.post("/detokenize", json={"tokens": text["tokens"]})
        chat = (await gateway.http.post("/tokenize", json={"messages": HI})).json()
        await gateway.http.post(CHAT, json={"messages": HI})
        neither = await gateway.http.post("/tokenize", json={})
        outside = await gateway.http.post("/detokenize", json={"tokens": [100_000]})
    assert back.json() == {"prompt": "Größe 🙂"}
    assert text["count"] == len(text["tokens"]) == len(text["token_strs"])
    assert text["max_model_len"] == 512
    assert chat["tokens"] == list(verifier.requests[0].tokens)
    assert neither.status_code == outside.status_code == 400


@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
async def test_a_prompt_that_cannot_be_encoded(
    serve: Serve, verifier: FakeVerifier, path: str
) -> None:
    verifier.files["chat_template.jinja"] = b"{{ messages[0].content }} {{ mood }}"
    async with serve(verifier) as gateway:
        for mood, status in (("\ud800", 400), ("calm", 200)):
            body = {"messages": HI, "chat_template_kwargs": {"mood": mood}}
            answer = await gateway.http.post(path, content=json.dumps(body), headers=JSON)
            assert answer.status_code == status
            if status == 400:
                assert answer.json()["error"]["param"] == "chat_template_kwargs"


async def test_names_that_cannot_be_encoded(serve: Serve, verifier: FakeVerifier) -> None:
    async with serve(verifier) as gateway:
        body = json.dumps({"messages": HI, "\ud800": 1})
        answer = await gateway.http.post(CHAT, content=body, headers=JSON)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["message"].startswith("The body has a name that is no text")
    assert error["param"] is None


async def test_tiny_temperatures_and_probabilities_reach_the_verifier(
    serve: Serve, verifier: FakeVerifier
) -> None:
    body = {"messages": HI, "temperature": 1e-8, "top_p": 1e-60}
    async with serve(verifier) as gateway:
        assert (await gateway.http.post(CHAT, json=body)).status_code == 200
    sampling = verifier.requests[0].sampling
    assert sampling.temperature == pytest.approx(1e-8)
    assert sampling.top_p > 0


@pytest.mark.parametrize("stream", [False, True])
async def test_logits_that_are_not_finite_are_nobody_elses_fault(
    serve: Serve, verifier: FakeVerifier, stream: bool
) -> None:
    verifier.script.faults = [Fault(0, grpc.StatusCode.OUT_OF_RANGE, "not finite") for _ in "ab"]
    async with serve(verifier) as gateway:
        answer = await gateway.http.post(CHAT, json={"messages": HI, "stream": stream})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "logits_not_finite"
        assert len(verifier.requests) == 1, "no other verifier is tried"
        assert gateway.services.unready() is None


async def test_the_log_says_why_without_the_prompt(serve: Serve, verifier: FakeVerifier) -> None:
    verifier.files["chat_template.jinja"] = b"{{ raise_exception(messages[0].content) }}"
    async with serve(verifier, api_keys="k") as gateway:
        with structlog.testing.capture_logs(
            processors=[structlog.contextvars.merge_contextvars]
        ) as logs:
            for headers, body in (
                ({"authorization": "Bearer k"}, {"messages": HI, "n": 0}),
                ({"authorization": "Bearer k"}, {"messages": [{**HI[0], "content": "secret"}]}),
                ({}, {"messages": HI}),
            ):
                identity = {"x-request-id": "find-me"}
                await gateway.http.post(CHAT, json=body, headers={**headers, **identity})
    lines = [line for line in logs if line["event"] == "request"]
    assert [line["status"] for line in lines] == [400, 400, 401]
    assert [line["refusal"].partition(":")[0] for line in lines[:2]] == ["n", "messages"]
    assert "API key" in lines[2]["refusal"]
    assert all(line["request_id"] == "find-me" for line in lines)
    assert "secret" not in str(logs)
