"""The OpenAPI document says what the server does: limits, forms, statuses and answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gateway.api.app import create_app
from gateway.schema.completion import CompletionBody
from gateway.schema.responses import ChatCompletion, TextCompletion
from gateway.settings import GatewaySettings
from tests.gateway.conftest import Serve
from tests.support.fake_verifier import FakeVerifier

HI: Any = [{"role": "user", "content": "Hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI, "max_tokens": 4},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 4},
    "/tokenize": {"prompt": "Hi"},
    "/detokenize": {"tokens": [5]},
}
# What a value needs beside it.
NEEDS: dict[str, dict[str, Any]] = {
    "max_completion_tokens": {"max_tokens": None},
    "top_logprobs": {"logprobs": True},
    "stream_options": {"stream": True},
}
# Entries of lists that take too long to try here.
LONG = 2**20
# Limits that the request itself or the model draws closer.
CLOSER = {"min_tokens", "model", "messages", "prompt", "max_tokens", "max_completion_tokens"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(GatewaySettings()).openapi()


def resolved(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    return document["components"]["schemas"][name] if name else schema


def forms(schema: dict[str, Any], document: dict[str, Any]) -> list[dict[str, Any]]:
    """The alternatives of a schema, null left out."""
    own = resolved(schema, document)
    parts = [
        part
        for kind in ("anyOf", "oneOf")
        for each in own.get(kind, ())
        for part in forms(each, document)
    ]
    return [part for part in parts or [own] if part.get("type") != "null"]


def inside(form: dict[str, Any], document: dict[str, Any]) -> Iterator[Any]:
    """Values at the edges of what the document allows."""
    yield from form.get("enum", [])
    if "const" in form:
        yield form["const"]
        return
    match form.get("type"):
        case "integer" | "number":
            kind = int if form["type"] == "integer" else float
            ends = [kind(form[end]) for end in ("minimum", "maximum") if end in form]
            # 1.0 is an integer, too.
            yield from (*ends, *map(float, ends))
            yield from (int(form[end]) - 1 for end in ("exclusiveMaximum",) if end in form)
            yield from [5e-324] * ("exclusiveMinimum" in form)
        case "boolean":
            yield from (True, False)
        case "string" if "maxLength" in form:
            yield from ("x" * n for n in (form.get("minLength", 0), form["maxLength"]))
        case "array" if form.get("maxItems", LONG) < LONG:
            yield [item(form, document)] * form["maxItems"]
        case "object" if "maxProperties" in form:
            yield {str(i): member(form) for i in range(form["maxProperties"])}
        case "object":
            for name, part in form.get("properties", {}).items():
                for each in forms(part, document):
                    yield from ({name: value} for value in inside(each, document))


def outside(form: dict[str, Any], document: dict[str, Any]) -> Iterator[Any]:
    """Values just beyond them, and of other types."""
    yield from ["nonsense"] * ("enum" in form)
    if "const" in form:
        yield from (True, 0.5, "nonsense")
        return
    match form.get("type"):
        case "integer" | "number":
            kind, step = (int, 1) if form["type"] == "integer" else (float, 0.001)
            yield from (kind(form[end]) - step for end in ("minimum",) if end in form)
            yield from (kind(form[end]) + step for end in ("maximum",) if end in form)
            exclusive = ("exclusiveMinimum", "exclusiveMaximum")
            yield from (kind(form[end]) for end in exclusive if end in form)
            yield from ("1", True)
        case "boolean":
            yield from ("true", 1)
        case "string":
            yield 5
            yield from ("x" * (form[end] + 1) for end in ("maxLength",) if end in form)
        case "array":
            yield from [[]] * form.get("minItems", 0)
            if form.get("maxItems", LONG) < LONG:
                yield [item(form, document)] * (form["maxItems"] + 1)
        case "object":
            if "maxProperties" in form:
                yield {str(i): member(form) for i in range(form["maxProperties"] + 1)}
            for name, part in form.get("properties", {}).items():
                for each in forms(part, document):
                    yield from ({name: value} for value in outside(each, document))


def member(form: dict[str, Any]) -> Any:
    """A value that an object of any names may have."""
    return "x" if form.get("additionalProperties", {}).get("type") == "string" else 1


def item(form: dict[str, Any], document: dict[str, Any]) -> Any:
    """One that an array may have."""
    one = forms(form.get("items", {"type": "object"}), document)[0]
    return one.get("const", {"string": "x", "integer": 1, "object": {}}[one["type"]])


def fields(path: str, document: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    properties = resolved(body["schema"], document)["properties"]
    return {name: forms(schema, document) for name, schema in properties.items()}


@pytest.mark.slow
async def test_limits_are_those_that_are_enforced(
    serve: Serve, verifier: FakeVerifier, document: dict[str, Any]
) -> None:
    verifier.model.vocab_size = 5000
    verifier.model.max_top_logprobs = 20
    checked = 0
    async with serve(verifier) as gateway:
        for path, base in BODIES.items():
            for name, kinds in fields(path, document).items():
                body = {**base, **NEEDS.get(name, {})}
                good = () if name in CLOSER else [v for k in kinds for v in inside(k, document)]
                for value in good:
                    answer = await gateway.http.post(path, json={**body, name: value})
                    assert answer.status_code == 200, (path, name, value, answer.text)
                for value in [v for kind in kinds for v in outside(kind, document)]:
                    answer = await gateway.http.post(path, json={**body, name: value})
                    assert answer.status_code == 400, (path, name, value)
                    assert answer.json()["error"]["param"].startswith(name), answer.text
                    checked += 1
                needed = name in base
                answer = await gateway.http.post(path, json={**body, name: None})
                assert (answer.status_code == 400) == (needed and name != "max_tokens"), name
    assert checked > 150


def keywords(part: Any) -> Iterator[str]:
    """The keys of a document at any depth."""
    if isinstance(part, dict):
        yield from part
    children = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    for child in children:
        yield from keywords(child)


def test_limits_are_written_as_json_schema_has_them(document: dict[str, Any]) -> None:
    used = set(keywords(document))
    assert not used & {"ge", "gt", "le", "lt", "min_length", "max_length", "multiple_of"}
    assert {"minimum", "maximum", "exclusiveMaximum"} <= used
    for path in ("/v1/chat/completions", "/v1/completions"):
        [seed], [tokens] = (fields(path, document)[name] for name in ("seed", "max_tokens"))
        assert (seed["minimum"], seed["exclusiveMaximum"]) == (-(2**63), 2**64)
        assert (tokens["minimum"], tokens["maximum"]) == (1, 2**32 - 1)


def test_what_is_left_out_is_told(document: dict[str, Any]) -> None:
    for name in ("ChatBody", "CompletionBody"):
        told = document["components"]["schemas"][name]["properties"]["max_tokens"]["description"]
        assert f"a text by {CompletionBody.model_validate({'prompt': 'x'}).limit} tokens" in told


async def test_the_root_names_what_is_there(serve: Serve, verifier: FakeVerifier) -> None:
    async with serve(verifier, api_keys="k") as gateway:
        told = (await gateway.http.get("/")).json()
        assert told.pop("name") == "Holdcourse"
        for path in told.values():
            answer = await gateway.http.get(path, headers={"authorization": "Bearer k"})
            assert answer.status_code == 200, path


def test_every_form_of_a_prompt_is_told(document: dict[str, Any]) -> None:
    text, tokens, several = fields("/v1/completions", document)["prompt"]
    assert text["type"] == "string"
    assert tokens["items"]["type"] == "integer"
    assert [part["type"] for part in several["items"]["oneOf"]] == ["string", "array"]


def test_statuses_are_those_that_are_sent(document: dict[str, Any]) -> None:
    assert "HTTPValidationError" not in str(document)
    generations = [document["paths"][path]["post"]["responses"] for path in list(BODIES)[:2]]
    for responses in generations:
        assert [*responses] == ["200", "400", "401", "404", "413", "429", "500", "503", "504"]
        assert {*responses["200"]["content"]} == {"application/json", "text/event-stream"}
    for methods in document["paths"].values():
        for operation in methods.values():
            for status, response in operation["responses"].items():
                [content, *_] = response["content"].values()
                error = content["schema"].get("$ref", "").endswith("/ErrorDocument")
                assert error == (status not in ("200",)) or "Readiness" in str(content)


async def test_answers_have_the_form_that_is_told(serve: Serve, verifier: FakeVerifier) -> None:
    extras: list[dict[str, Any]] = [{}, {"return_token_ids": True, "n": 2}]
    async with serve(verifier) as gateway:
        for extra in extras:
            chat = {**BODIES["/v1/chat/completions"], **extra}
            for more in ({}, {"logprobs": True, "top_logprobs": 2}):
                answer = await gateway.http.post("/v1/chat/completions", json={**chat, **more})
                assert ChatCompletion.model_validate(answer.json(), strict=True).choices
            text = {**BODIES["/v1/completions"], **extra}
            for more in ({}, {"logprobs": 2}):
                answer = await gateway.http.post("/v1/completions", json={**text, **more})
                assert TextCompletion.model_validate(answer.json(), strict=True).choices
