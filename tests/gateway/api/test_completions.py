"""Text completions."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.gateway.conftest import Serve
from tests.support.fake_verifier import FakeVerifier

TEXT = "Hello, wörld! 🙂"


async def test_defaults_to_sixteen_tokens(serve: Serve, verifier: FakeVerifier) -> None:
    async with serve(verifier) as gateway:
        done = await gateway.client.completions.create(model="default", prompt="Once")
    assert verifier.requests[0].sampling.max_tokens == 16
    assert TEXT.startswith(done.choices[0].text.rstrip("\ufffd"))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("form", ["text", "texts", "ids", "lists"])
async def test_every_form_of_prompt(
    serve: Serve, verifier: FakeVerifier, tokenizer: Tokenizer, form: str, stream: bool
) -> None:
    a, b = tokenizer.encode("Once upon").ids, tokenizer.encode("In the").ids
    prompt: Any = {"text": "Once upon", "texts": ["Once upon", "In the"], "ids": a, "lists": [a, b]}
    expected = [a] if form in ("text", "ids") else [a, b]
    texts: dict[int, str] = {}
    async with serve(verifier) as gateway:
        answer: Any = await gateway.client.completions.create(
            model="default", prompt=prompt[form], n=2, max_tokens=60, stream=stream
        )
        if stream:
            async for chunk in answer:
                [choice] = chunk.choices
                texts[choice.index] = texts.get(choice.index, "") + choice.text
        else:
            texts = {choice.index: choice.text for choice in answer.choices}
            assert answer.usage.prompt_tokens == sum(map(len, expected))
    assert texts == dict.fromkeys(range(2 * len(expected)), TEXT)
    prompts = [list(request.tokens) for request in verifier.requests]
    assert sorted(prompts) == sorted(ids for ids in expected for _ in range(2))
    indices = sorted(r.choice_index for r in verifier.requests)
    assert indices == [0] * len(expected) + [1] * len(expected)


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs(serve: Serve, verifier: FakeVerifier, stream: bool) -> None:
    tokens: list[str] = []
    offsets: list[int] = []
    tops: list[dict[str, float]] = []
    async with serve(verifier) as gateway:
        answer: Any = await gateway.client.completions.create(
            model="default", prompt="Once", logprobs=2, max_tokens=60, stream=stream
        )
        parts = [part async for part in answer] if stream else [answer]
    for part in parts:
        if part.choices[0].logprobs:
            tokens += part.choices[0].logprobs.tokens
            offsets += part.choices[0].logprobs.text_offset
            tops += part.choices[0].logprobs.top_logprobs
    text = "".join(part.choices[0].text for part in parts)
    whole = [(t, at) for t, at in zip(tokens, offsets, strict=True) if not t.startswith("bytes:")]
    assert len(whole) < len(tokens), "the text has characters of several tokens"
    assert all(text.startswith(token, at) for token, at in whole)
    assert all(token in top for token, top in zip(tokens, tops, strict=True))


async def test_texts_get_the_special_tokens_of_the_tokenizer(
    serve: Serve, verifier: FakeVerifier, tokenizer: Tokenizer
) -> None:
    from tokenizers.processors import TemplateProcessing

    with_bos = Tokenizer.from_str(tokenizer.to_str())
    with_bos.post_processor = TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", 0)]
    )
    verifier.files["tokenizer.json"] = with_bos.to_str().encode()
    async with serve(verifier) as gateway:
        await gateway.client.completions.create(model="default", prompt="Once")
        await gateway.client.chat.completions.create(
            model="default", messages=[{"role": "user", "content": "Once"}]
        )
    text, chat = (list(request.tokens) for request in verifier.requests)
    assert text == [0, *tokenizer.encode("Once").ids]
    assert chat.count(0) == 1, "the template writes it, the tokenizer does not add another"
