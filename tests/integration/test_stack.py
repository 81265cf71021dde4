"""The whole path: REST to target to drafter and back, and what survives when a part breaks."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
import torch
from openai import BadRequestError, OpenAI
from transformers import PreTrainedModel

from specwire.v1 import drafter_pb2, verifier_pb2
from specwire.v1.drafter_pb2_grpc import DrafterServiceStub
from specwire.v1.verifier_pb2_grpc import VerifierServiceStub
from tests.integration.conftest import Cluster, grpc_serving, wait_until

PROMPT = [0, *range(20, 60)]
LENGTH = 400


@pytest.fixture(scope="module")
def expected(tiny_reference: PreTrainedModel) -> list[int]:
    """What transformers generates greedily after PROMPT."""
    prompt = torch.tensor([PROMPT])
    output = tiny_reference.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=LENGTH,
        min_new_tokens=LENGTH, do_sample=False, pad_token_id=1, eos_token_id=None,
    )  # fmt: skip
    tokens: list[int] = output[0].tolist()
    return tokens


@pytest.fixture
def stub(cluster: Cluster) -> Iterator[VerifierServiceStub]:
    with grpc.insecure_channel(cluster.verifier) as channel:
        yield VerifierServiceStub(channel)


def request(length: int = LENGTH, **sampling: object) -> verifier_pb2.GenerateRequest:
    given = {"temperature": 0.0, "max_tokens": length, "ignore_eos": True} | sampling
    return verifier_pb2.GenerateRequest(
        request_id="test",
        tokens=PROMPT,
        output_start=len(PROMPT),
        sampling=verifier_pb2.Sampling(**given),  # type: ignore[arg-type]
    )


def collect(
    frames: Iterator[verifier_pb2.GenerateResponse],
) -> tuple[list[int], list[verifier_pb2.Tokens], verifier_pb2.Finish]:
    """All tokens in order, their frames, and the end."""
    tokens = list(PROMPT)
    rounds: list[verifier_pb2.Tokens] = []
    for number, frame in enumerate(frames):
        assert frame.number == number
        if frame.HasField("finish"):
            return tokens, rounds, frame.finish
        assert frame.tokens.start == len(tokens)
        tokens += frame.tokens.ids
        rounds.append(frame.tokens)
    raise AssertionError("the stream ended without a Finish")


def _code(error: grpc.RpcError) -> grpc.StatusCode:
    assert isinstance(error, grpc.Call)
    return error.code()


def linked(stub: VerifierServiceStub) -> bool:
    """Whether drafts reach the verifier now."""
    _, _, finish = collect(stub.Generate(request(length=30)))
    return finish.usage.drafted_rounds > 0


def test_speculation_over_the_wire_gives_the_targets_text(
    cluster: Cluster, stub: VerifierServiceStub, expected: list[int]
) -> None:
    wait_until(lambda: linked(stub), "a drafted round")
    way = "a Unix socket" if cluster.same_host == "on" else "gRPC"
    assert f"drafter linked by {way}" in (cluster.folder / "verifier.log").read_text()
    tokens, rounds, finish = collect(stub.Generate(request()))
    assert tokens == expected
    usage = finish.usage
    assert usage.drafted_rounds > 0.5 * usage.rounds
    assert usage.rounds + usage.accepted_draft_tokens == LENGTH
    assert sum(frame.drafted for frame in rounds) == sum(usage.proposed_at)
    assert usage.accepted_draft_tokens > 0
    # Random weights repeat themselves: both sources have their turn.
    by_lookup = [f for f in rounds if f.source == drafter_pb2.DRAFT_SOURCE_LOOKUP]
    by_chain = [f for f in rounds if f.source == drafter_pb2.DRAFT_SOURCE_CHAIN]
    assert len(by_lookup) + len(by_chain) == usage.drafted_rounds
    assert by_chain
    assert sum(f.drafted for f in by_lookup) == sum(usage.lookup_proposed_at) > 0
    assert sum(f.accepted for f in by_lookup) == sum(usage.lookup_accepted_at) > 0
    timings = finish.timings
    assert timings.target_us > 0
    assert timings.drafter_us > 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_speculation_changes_no_token(stub: VerifierServiceStub, temperature: float) -> None:
    wait_until(lambda: linked(stub), "a drafted round")
    drawn = {"temperature": temperature, "seed": 2**63 + 5, "top_p": 0.9, "presence_penalty": 0.5}
    fast = request(LENGTH, **drawn)
    plain = request(LENGTH, **drawn)
    plain.speculation.disabled = True
    capped = request(LENGTH, **drawn)
    capped.speculation.max_draft_tokens = 1
    texts = [collect(stub.Generate(r)) for r in (fast, plain, capped)]
    assert texts[0][0] == texts[1][0] == texts[2][0]
    assert texts[0][2].usage.drafted_rounds > 0
    assert texts[1][2].usage.drafted_rounds == 0
    assert len(texts[2][2].usage.proposed_at) == 1


def test_eight_at_once_equal_one_alone(stub: VerifierServiceStub, expected: list[int]) -> None:
    calls = [stub.Generate(request(length=100)) for _ in range(8)]
    for call in calls:
        assert collect(call)[0] == expected[: len(PROMPT) + 100]


def test_drafter_killed_in_mid_generation(
    cluster: Cluster, stub: VerifierServiceStub, expected: list[int]
) -> None:
    wait_until(lambda: linked(stub), "a drafted round")
    frames = stub.Generate(request())
    seen: list[verifier_pb2.GenerateResponse] = []
    for frame in frames:
        seen.append(frame)
        # On a busy machine the drafter may have the prompt only some rounds later.
        if "drafter" in cluster.processes and frame.tokens.drafted:
            cluster.kill("drafter")
    tokens, rounds, _ = collect(iter(seen))
    assert tokens == expected
    assert "drafter" not in cluster.processes
    assert not rounds[-1].drafted
    cluster.start_drafter()
    cluster.wait()
    wait_until(lambda: linked(stub), "a drafted round after the restart")


def test_speculation_resumes_in_the_running_request(
    cluster: Cluster, stub: VerifierServiceStub, expected: list[int]
) -> None:
    cluster.kill("drafter")
    wait_until(lambda: not linked(stub), "a plain round")
    # Requests that keep the verifier slow, so that the drafter starts within the one watched.
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            collect(stub.Generate(request(length=LENGTH)))

    threads = [threading.Thread(target=load) for _ in range(6)]
    cluster.start_drafter()
    for thread in threads:
        thread.start()
    try:
        resumed = False
        deadline = time.monotonic() + 90
        while not resumed:
            assert time.monotonic() < deadline, "no request saw the drafter return"
            tokens, rounds, _ = collect(stub.Generate(request()))
            assert tokens == expected
            resumed = not any(r.drafted for r in rounds[:5]) and any(r.drafted for r in rounds)
            if not resumed and rounds[0].drafted == 0 and any(r.drafted for r in rounds[1:3]):
                # The drafter returned between two requests: take it away again.
                cluster.kill("drafter")
                cluster.start_drafter()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    cluster.wait()


def test_openai_client_chats_in_a_session(cluster: Cluster) -> None:
    client: Any = OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0)
    headers = {"x-session-id": "session-one"}
    messages = [{"role": "user", "content": "Hello"}]
    first = client.chat.completions.create(
        model="default", messages=messages, max_tokens=24, temperature=0, extra_headers=headers
    )
    text = first.choices[0].message.content
    messages += [
        {"role": "assistant", "content": text},
        {"role": "user", "content": "And then?"},
    ]
    arguments = {
        "model": "default", "messages": messages, "max_tokens": 24, "temperature": 0,
        "extra_headers": headers,
    }  # fmt: skip
    whole = client.chat.completions.create(**arguments)
    stream = client.chat.completions.create(
        **arguments, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    session = httpx.get(f"{cluster.url}/v1/sessions/session-one").json()
    assert session["turns"] == 3
    assert session["epoch"] > 0

    def drafted() -> bool:
        answer = client.chat.completions.create(**arguments | {"extra_headers": {}})
        details = answer.usage.completion_tokens_details
        told = details.accepted_prediction_tokens + details.rejected_prediction_tokens
        return bool(told > 0)

    # On a busy machine so short an answer may end before the drafter has its prompt.
    wait_until(drafted, "an answer with drafts")


def test_bad_requests_name_the_field_and_harm_nobody(
    cluster: Cluster, stub: VerifierServiceStub, expected: list[int]
) -> None:
    client: Any = OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0)
    running = stub.Generate(request(length=200))
    with pytest.raises(BadRequestError, match="temperature"):
        client.completions.create(model="default", prompt="x", temperature=-1)
    with pytest.raises(BadRequestError) as long:
        client.completions.create(model="default", prompt="x" * 600)
    assert long.value.code == "context_length_exceeded"
    post = f"{cluster.url}/v1/chat/completions"
    assert httpx.post(post, content=b"{not json").status_code == 400
    assert httpx.post(post, content=b" " * (10 << 20)).status_code == 413
    unknown = httpx.post(
        post, json={"model": "other", "messages": [{"role": "user", "content": "x"}]}
    )
    assert unknown.status_code == 404
    assert unknown.json()["error"]["code"] == "model_not_found"
    assert collect(running)[0] == expected[: len(PROMPT) + 200]


def test_garbage_on_both_grpc_ports_is_refused_by_name(
    cluster: Cluster, stub: VerifierServiceStub, expected: list[int]
) -> None:
    running = stub.Generate(request(length=200))
    for address, method in (
        (cluster.verifier, "/specwire.v1.VerifierService/Generate"),
        (cluster.drafter, "/specwire.v1.DrafterService/Draft"),
    ):
        with grpc.insecure_channel(address) as channel:
            stream: Any = channel.stream_stream(method)
            call = stream(iter([b"\xff\xfe garbage"]))
            with pytest.raises(grpc.RpcError) as refusal:
                list(call)
        assert _code(refusal.value) is grpc.StatusCode.INVALID_ARGUMENT
    assert collect(running)[0] == expected[: len(PROMPT) + 200]


def test_drafter_for_another_target_is_refused_in_one_sentence(cluster: Cluster) -> None:
    hello = drafter_pb2.Hello(link_id=1, target_fingerprint="beef", vocab_size=97, hidden_size=32)
    with grpc.insecure_channel(cluster.drafter) as channel:
        stub = DrafterServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refusal:
            list(stub.Draft(iter([drafter_pb2.DraftRequest(hello=hello)])))
    assert _code(refusal.value) is grpc.StatusCode.FAILED_PRECONDITION
    assert "fingerprint" in str(refusal.value)


def test_a_prompt_that_was_seen_is_cached_and_gives_the_same_text(cluster: Cluster) -> None:
    body = {
        "model": "default", "prompt": "b" * 40, "max_tokens": 30, "temperature": 0,
        "ignore_eos": True,
    }  # fmt: skip
    answers = []
    for salt in ("", "", "mine"):
        asked = body | {"cache_salt": salt}
        answers.append(httpx.post(f"{cluster.url}/v1/completions", json=asked, timeout=120).json())
    cached = [a["usage"]["prompt_tokens_details"]["cached_tokens"] for a in answers]
    assert cached[0] == cached[2] == 0
    assert cached[1] > answers[1]["usage"]["prompt_tokens"] - 2 * 16
    assert len({answer["choices"][0]["text"] for answer in answers}) == 1
    assert answers[1]["usage"]["completion_tokens_details"]["accepted_prediction_tokens"] > 0


def test_verifier_killed_in_mid_answer_is_failed_over(cluster: Cluster) -> None:
    """The gateway goes on where the verifier stopped, with nothing lost and nothing twice."""
    body = {
        "model": "default", "prompt": "a" * 40, "max_tokens": 400, "temperature": 0,
        "ignore_eos": True,
    }  # fmt: skip
    whole = httpx.post(f"{cluster.url}/v1/completions", json=body, timeout=120).json()
    pieces: list[str] = []
    with httpx.stream(
        "POST", f"{cluster.url}/v1/completions", json=body | {"stream": True}, timeout=120
    ) as answer:
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            choices = json.loads(line.removeprefix("data: "))["choices"]
            pieces += [choice["text"] for choice in choices]
            if len(pieces) == 5:
                cluster.kill("verifier")
                cluster.start_verifier()
    assert "".join(pieces) == whole["choices"][0]["text"]
    cluster.wait()


def test_drain_refuses_what_is_new_and_says_so_in_health(
    cluster: Cluster, stub: VerifierServiceStub, expected: list[int]
) -> None:
    running = stub.Generate(request())
    first = next(running)
    answer = stub.Drain(verifier_pb2.DrainRequest())
    assert answer.running == 1
    assert not grpc_serving(cluster.verifier)
    with pytest.raises(grpc.RpcError) as refusal:
        list(stub.Generate(request()))
    assert _code(refusal.value) is grpc.StatusCode.UNAVAILABLE
    assert collect(iter([first, *running]))[0] == expected


def test_everything_drains_on_sigterm(cluster: Cluster) -> None:
    statuses = cluster.stop()
    assert statuses == {"gateway": 0, "verifier": 0, "drafter": 0}, cluster.logs()
