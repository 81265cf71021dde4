"""Chat completions, as the openai package sees them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.gateway.conftest import Serve, saying, until
from tests.support.fake_verifier import FakeVerifier

MESSAGES: Any = [{"role": "user", "content": "Hi"}]
TEXT = "Hello, wörld! 🙂"


async def test_answers_with_text_and_usage(serve: Serve, verifier: FakeVerifier) -> None:
    async with serve(verifier) as gateway:
        done = await gateway.client.chat.completions.create(
            model="default", messages=MESSAGES, temperature=0, seed=7
        )
    assert done.choices[0].message.content == TEXT
    assert done.choices[0].finish_reason == "stop"
    assert done.model == "tiny-model"
    assert done.system_fingerprint == "fp_0123456789abcdef"
    [request] = verifier.requests
    usage = done.usage
    assert usage is not None
    assert usage.prompt_tokens == len(request.tokens) == request.output_start
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == request.output_start // 2
    details = usage.completion_tokens_details
    assert details is not None
    report: Any = done.model_extra and done.model_extra["holdcourse"]
    rounds = report["rounds"]
    # Every round of the script accepts all but one of its drafts, and adds one token.
    assert details.rejected_prediction_tokens == rounds > 1
    assert details.accepted_prediction_tokens == usage.completion_tokens - rounds
    assert report["proposed_at"][0] == rounds
    assert sum(report["accepted_at"]) == details.accepted_prediction_tokens
    assert (report["lookup_proposed_at"], report["lookup_accepted_at"]) == ([1, 1, 1], [1, 1, 0])
    assert report["timings"]["target_us"] == 2000
    assert report["timings"]["total_us"] >= report["timings"]["first_token_us"] > 0
    assert report["seed"] == 7


async def test_streams_one_chunk_a_round(
    serve: Serve, verifier: FakeVerifier, tokenizer: Tokenizer
) -> None:
    body = {
        "model": "default",
        "messages": MESSAGES,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with serve(verifier) as gateway:
        answer = await gateway.http.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert TEXT[-1] in answer.text, "characters are not escaped"
    *lines, done, nothing = answer.text.split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    role, *content, finish, usage = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert finish["choices"][0]["delta"] == {}
    assert finish["choices"][0]["finish_reason"] == "stop"
    pieces = [chunk["choices"][0]["delta"]["content"] for chunk in content]
    assert "".join(pieces) == TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    count = len(tokenizer.encode(TEXT).ids)
    assert len(pieces) in (-(-count // 3), -(-count // 3) + 1)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == count + 1, "the end token counts"
    assert usage["holdcourse"]["rounds"] == -(-(count + 1) // 3)
    assert all(chunk["usage"] is None for chunk in (role, *content, finish))
    assert len({chunk["id"] for chunk in (role, *content, finish, usage)}) == 1


async def test_stream_through_openai_equals_document(serve: Serve, verifier: FakeVerifier) -> None:
    async with serve(verifier) as gateway:
        stream = await gateway.client.chat.completions.create(
            model="tiny-model", messages=MESSAGES, stream=True
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert all(chunk.usage is None for chunk in chunks)


async def test_stop_string_across_rounds_cancels_the_call(
    serve: Serve, verifier: FakeVerifier, tokenizer: Tokenizer
) -> None:
    verifier.script.draw = saying(tokenizer.encode("one two STOP three " * 9).ids)
    verifier.script.delay = 0.01
    async with serve(verifier) as gateway:
        done = await gateway.client.chat.completions.create(
            model="default", messages=MESSAGES, stop=["STOP", "unseen"], max_tokens=100
        )
        assert done.choices[0].message.content == "one two "
        assert done.choices[0].finish_reason == "stop"
        used = tokenizer.encode("one two STOP").ids
        assert done.usage is not None
        assert done.usage.completion_tokens == len(used), "tokens beyond the stop do not count"
        assert done.usage.completion_tokens_details is not None
        assert done.usage.completion_tokens_details.accepted_prediction_tokens
        await until(lambda: verifier.cancelled == 1)


async def test_stop_strings_wait_for_min_tokens(
    serve: Serve, verifier: FakeVerifier, tokenizer: Tokenizer
) -> None:
    verifier.script.draw = saying(tokenizer.encode("ab STOP cd STOP ef").ids)
    first = len(tokenizer.encode("ab STOP").ids)
    async with serve(verifier) as gateway:
        done = await gateway.client.chat.completions.create(
            model="default", messages=MESSAGES, stop="STOP", extra_body={"min_tokens": first}
        )
    assert done.choices[0].message.content == "ab STOP cd "


async def test_choices_share_the_seed_and_differ_in_index(
    serve: Serve, verifier: FakeVerifier
) -> None:
    async with serve(verifier) as gateway:
        done = await gateway.client.chat.completions.create(model="default", messages=MESSAGES, n=3)
        stream = await gateway.client.chat.completions.create(
            model="default", messages=MESSAGES, n=3, stream=True
        )
        texts = ["", "", ""]
        async for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert texts == [choice.message.content for choice in done.choices] == [TEXT] * 3
    first = verifier.requests[:3]
    assert sorted(request.choice_index for request in first) == [0, 1, 2]
    assert len({request.sampling.seed for request in first}) == 1
    assert len({request.epoch for request in first}) == 1
    assert done.usage is not None
    assert done.usage.prompt_tokens == first[0].output_start, "the prompt counts once"


async def test_parameters_reach_the_verifier(serve: Serve, verifier: FakeVerifier) -> None:
    async with serve(verifier) as gateway:
        await gateway.client.chat.completions.create(
            model="default",
            messages=MESSAGES,
            seed=-2,
            temperature=0.5,
            top_p=0.75,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            max_completion_tokens=9,
            logit_bias={"5": -100, "6": 2},
            logprobs=True,
            top_logprobs=2,
            user="somebody",
            extra_body={
                "top_k": 4,
                "min_p": 0.25,
                "repetition_penalty": 1.5,
                "min_tokens": 2,
                "ignore_eos": True,
                "stop_token_ids": [9],
                "speculation": {"enabled": True, "max_draft_tokens": 3},
            },
        )
        await gateway.client.chat.completions.create(
            model="default", messages=MESSAGES, extra_body={"speculation": False}
        )
        await gateway.client.chat.completions.create(model="default", messages=MESSAGES)
    request, plain, default = verifier.requests
    sampling = request.sampling
    assert sampling.seed == 2**64 - 2
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.75, 4)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.25, 1.5)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -0.5)
    assert dict(sampling.logit_bias) == {5: -100, 6: 2}
    assert (sampling.min_tokens, sampling.max_tokens, sampling.ignore_eos) == (2, 9, True)
    assert list(sampling.stop_token_ids) == [9]
    assert sampling.top_logprobs == 2
    assert (request.speculation.disabled, request.speculation.max_draft_tokens) == (False, 3)
    assert plain.speculation.disabled
    assert not default.speculation.HasField("max_draft_tokens")
    assert not default.sampling.HasField("top_logprobs")
    assert default.sampling.temperature == 1, "as OpenAI's"
    assert default.sampling.seed != plain.sampling.seed, "a missing seed is drawn"
    room = 512 - default.output_start
    assert default.sampling.max_tokens == room, "as many as there is room for"


async def test_minus_one_is_a_new_seed_each_time(serve: Serve, verifier: FakeVerifier) -> None:
    async with serve(verifier) as gateway:
        for seed in (*[-1] * 8, -2, 2**64 - 2):
            await gateway.client.chat.completions.create(
                model="default", messages=MESSAGES, seed=seed
            )
    *drawn, one, other = (request.sampling.seed for request in verifier.requests)
    assert len(set(drawn)) == 8
    assert max(drawn) < 2**53, "readers of JSON that have doubles only repeat it"
    assert one == other == 2**64 - 2


async def test_length_is_the_reason_when_max_tokens_ends_it(
    serve: Serve, verifier: FakeVerifier
) -> None:
    async with serve(verifier) as gateway:
        done = await gateway.client.chat.completions.create(
            model="default", messages=MESSAGES, max_completion_tokens=4
        )
    assert done.choices[0].finish_reason == "length"
    assert done.usage is not None
    assert done.usage.completion_tokens == 4


async def test_unfinished_character_is_shown_at_the_end_only(
    serve: Serve, verifier: FakeVerifier, tokenizer: Tokenizer
) -> None:
    rocket = tokenizer.encode("\u2603").ids  # not in the corpus: three tokens of a byte each
    assert len(rocket) == 3
    verifier.script.draw = saying([*rocket, *rocket[:2]])
    verifier.script.round_size = 1
    async with serve(verifier) as gateway:
        stream = await gateway.client.chat.completions.create(
            model="default", messages=MESSAGES, stream=True
        )
        pieces = [c.choices[0].delta.content or "" async for c in stream]
    assert [piece for piece in pieces if piece] == ["\u2603", "\ufffd"]


async def test_logprobs(serve: Serve, verifier: FakeVerifier, tokenizer: Tokenizer) -> None:
    arguments: Any = {
        "model": "default",
        "messages": MESSAGES,
        "logprobs": True,
        "top_logprobs": 2,
    }
    async with serve(verifier) as gateway:
        done = await gateway.client.chat.completions.create(**arguments)
        stream = await gateway.client.chat.completions.create(**arguments, stream=True)
        streamed = [
            entry
            async for chunk in stream
            if chunk.choices[0].logprobs
            for entry in chunk.choices[0].logprobs.content or ()
        ]
    assert done.choices[0].logprobs is not None
    entries = done.choices[0].logprobs.content or []
    assert len(entries) == len(tokenizer.encode(TEXT).ids)
    assert b"".join(bytes(entry.bytes or ()) for entry in entries).decode() == TEXT
    assert entries[0].logprob == -0.25
    assert [top.logprob for top in entries[0].top_logprobs] == [-0.25, -1.25]
    assert entries[0].top_logprobs[0].token == entries[0].token
    assert streamed == entries


async def test_session_and_request_ids_come_back(serve: Serve, verifier: FakeVerifier) -> None:
    headers = {"x-session-id": "mine", "x-request-id": "abc-1"}
    async with serve(verifier) as gateway:
        raw = await gateway.client.chat.completions.with_raw_response.create(
            model="default", messages=MESSAGES, extra_headers=headers
        )
        again = await gateway.client.chat.completions.with_raw_response.create(
            model="default", messages=MESSAGES, extra_headers={"x-session-id": "mine"}
        )
        fresh = await gateway.client.chat.completions.with_raw_response.create(
            model="default", messages=MESSAGES
        )
    assert raw.headers["x-session-id"] == "mine"
    assert raw.headers["x-request-id"] == "abc-1"
    assert fresh.headers["x-session-id"].startswith("sess-")
    assert again.headers["x-request-id"].startswith("req-")
    first, second, third = verifier.requests
    assert (first.request_id, first.session_id) == ("abc-1", "mine")
    assert verifier.metadata[0]["x-request-id"] == "abc-1"
    assert second.session_id == "mine"
    assert second.epoch > first.epoch > 10**15
    assert third.session_id == fresh.headers["x-session-id"]


async def test_token_ids_on_request(
    serve: Serve, verifier: FakeVerifier, tokenizer: Tokenizer
) -> None:
    body = {"messages": MESSAGES, "return_token_ids": True}
    async with serve(verifier) as gateway:
        done = (await gateway.http.post("/v1/chat/completions", json=body)).json()
        stream = await gateway.http.post("/v1/chat/completions", json={**body, "stream": True})
    ids = tokenizer.encode(TEXT).ids
    assert done["choices"][0]["token_ids"] == ids
    events = [line.removeprefix("data: ") for line in stream.text.split("\n\n") if line]
    chunks = [json.loads(event) for event in events if event != "[DONE]"]
    assert [t for chunk in chunks for t in chunk["choices"][0].get("token_ids", [])] == ids


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ([{"role": "user", "content": "a"}], "user\na"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], "user\na"),
        (
            [{"role": "developer", "content": "d"}, {"role": "user", "content": "a"}],
            "system\nd<|im_end|>\n<|im_start|>user\na",
        ),
        (
            [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": None},
                {"role": "assistant"},
                {"role": "user", "content": "c"},
            ],
            "user\na<|im_end|>\n"
            + 2 * "<|im_start|>assistant\n<|im_end|>\n"
            + "<|im_start|>user\nc",
        ),
        (
            [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b", "refusal": None, "tool_calls": None},
                {"role": "user", "content": "c"},
            ],
            "user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc",
        ),
    ],
)
async def test_messages_become_the_templates_prompt(
    serve: Serve, verifier: FakeVerifier, tokenizer: Tokenizer, sent: Any, shown: str
) -> None:
    async with serve(verifier) as gateway:
        await gateway.client.chat.completions.create(model="default", messages=sent)
    prompt = tokenizer.decode(list(verifier.requests[0].tokens), skip_special_tokens=False)
    assert prompt == f"<|bos|><|im_start|>{shown}<|im_end|>\n<|im_start|>assistant\n"
