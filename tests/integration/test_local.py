"""A verifier process with the drafter inside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest

from specwire.v1 import verifier_pb2
from specwire.v1.verifier_pb2_grpc import VerifierServiceStub
from tests.integration.conftest import Cluster
from tests.support.ports import free_port

PROMPT, LENGTH = [0, *range(20, 60)], 120


@pytest.fixture
def metrics() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def local(
    tiny_llama: Path, tiny_checkpoint: Path, tmp_path: Path, metrics: str
) -> Iterator[Cluster]:
    running = Cluster(tmp_path, tiny_llama, tiny_checkpoint, "")
    try:
        running.start_verifier(
            "--drafter", f"local:{tiny_checkpoint}", "--metrics-port", metrics.partition(":")[2]
        )
        running.wait()
        yield running
    finally:
        running.stop()


def generate(stub: VerifierServiceStub, speculate: bool) -> tuple[list[int], verifier_pb2.Finish]:
    request = verifier_pb2.GenerateRequest(
        request_id="local",
        tokens=PROMPT,
        output_start=len(PROMPT),
        sampling=verifier_pb2.Sampling(temperature=0.0, max_tokens=LENGTH, ignore_eos=True),
    )
    request.speculation.disabled = not speculate
    frames = list(stub.Generate(request))
    return [token for frame in frames for token in frame.tokens.ids], frames[-1].finish


def test_a_local_drafter_is_used_and_changes_no_token(local: Cluster, metrics: str) -> None:
    with grpc.insecure_channel(local.verifier) as channel:
        stub = VerifierServiceStub(channel)
        text, first = generate(stub, True)
        # The drafter has the entries that this one begins with.
        again, second = generate(stub, True)
        plain, _ = generate(stub, False)
    assert text == again == plain
    assert len(text) == LENGTH
    for usage in (first.usage, second.usage):
        assert usage.drafted_rounds > 0.5 * usage.rounds
        assert usage.accepted_draft_tokens > 0
    assert second.usage.cached_prompt_tokens > 0
    assert first.timings.drafter_us > 0
    page = httpx.get(f"http://{metrics}/metrics").text
    values = dict(line.rsplit(" ", 1) for line in page.splitlines() if line[:1] != "#")
    assert float(values["holdcourse_drafter_links"]) == 1
    assert float(values["holdcourse_drafter_chains_total"]) > 0
    assert float(values['holdcourse_drafter_rows_total{way="inherited"}']) > 0
    assert local.stop() == {"verifier": 0}, local.logs()
