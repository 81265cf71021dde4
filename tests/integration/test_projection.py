"""Features projected on the verifier: the drafter's own first step, and texts as without."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from transformers import PreTrainedModel

import speckernels as kernels
from drafter_svc.inference.fused_model import FusedDrafter
from drafter_svc.model.feature_projection import ProjectionWeights
from specwire.handshake import TargetIdentity
from specwire.messages import CatchUpAck, Draft, DrafterUp, DraftEvent, Proposals
from specwire.v1 import drafter_pb2
from specwire.v1 import verifier_pb2 as pb
from specwire.v1.verifier_pb2_grpc import VerifierServiceStub
from tests.integration.conftest import Cluster, wait_until
from tests.support.drafter_fixtures import Parts, random_text
from tests.support.served_drafter import Servers, check
from tests.support.tiny_drafter import tiny_config, tiny_drafter
from verifier_svc.speculation.feature_projection import Projector
from verifier_svc.speculation.grpc_client import DrafterClient

PROMPT, LENGTH = [0, *range(20, 60)], 300
NORMS: dict[str, dict[str, Any]] = {
    "of each state": {},
    "none": {"fc_norm": False},
    "of all states": {"fc_norm": False, "norm_before_fc": True},
}


class Direct:
    """A drafter's stub without a wire."""

    def __init__(self, weights: ProjectionWeights) -> None:
        self._weights = weights

    async def Projection(self, request: object) -> Any:  # noqa: N802
        for message in self._weights.messages():
            yield message


@pytest.mark.parametrize("norms", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("compile", ["off", "auto"])
async def test_both_ends_project_alike(norms: str, dtype: torch.dtype, compile: Any) -> None:
    kernels.load_kernels(compile)
    try:
        config = tiny_config(
            hidden_size=64, target_hidden_size=64, head_dim=32, vocab_size=128, **NORMS[norms]
        )
        module = tiny_drafter(config).to(dtype).eval().requires_grad_(False)
        weights = ProjectionWeights.of(module)
        assert weights is not None
        projector = Projector(torch.device("cpu"))
        announced = drafter_pb2.DescribeResponse(
            checkpoint_hash="c", aux_layer_ids=config.aux_layers, target_hidden_size=64,
            projected_width=weights.width,
        )  # fmt: skip
        await projector.adopt(1, Direct(weights), announced)
        features = torch.randn(40, 192).to(dtype)
        pieces, projected = projector.form(1, [features[:3], features[3:]])
        assert projected
        got = torch.cat(list(pieces))
        assert got.dtype == dtype
        assert torch.equal(got, FusedDrafter(module, torch.randn(128, 64), 16).fuse(features))
        # What training computes, up to the rounding of the dtype.
        step = torch.finfo(dtype).eps
        torch.testing.assert_close(got, module.fuse(features), rtol=4 * step, atol=16 * step)
        assert projector.form(1, [features[:0]])[0][0].shape == (0, 64)
    finally:
        kernels.load_kernels("off")


@pytest.mark.parametrize("same_host", [False, True], ids=["gRPC", "same host"])
async def test_drafts_are_those_of_rows_as_captured(same_host: bool) -> None:
    async with Servers(same_host) as servers:
        parts = Parts()
        running = await servers.start(parts, ProjectionWeights.of(parts.module))
        address, shape = f"127.0.0.1:{running.port}", TargetIdentity("feed", 128, 16)
        text = random_text(80, 1)
        answers: list[list[Draft]] = []
        for projector in (None, Projector(torch.device("cpu"))):
            client = DrafterClient(address, shape, projector=projector)
            events: queue.SimpleQueue[DraftEvent] = queue.SimpleQueue()
            client.start(events.put)
            try:
                link = (await heard(events, DrafterUp)).link
                client.bulk(link, *text.extend(5, 0, 60))
                assert (await heard(events, CatchUpAck)).real_len == 60
                answers.append([])
                for start, stop in ((60, 62), (62, 70)):
                    extend, rows = text.extend(5, start, stop, 4)
                    client.round(link, [extend], [rows], ())
                    answers[-1] += (await heard(events, Proposals)).drafts
            finally:
                await client.close()
    for captured, projected, base in zip(*answers, (62, 70), strict=True):
        check(running, captured, text, base, 4)
        assert projected.tokens == captured.tokens
        assert projected.confidence == pytest.approx(captured.confidence, rel=1e-4)


async def heard(events: queue.SimpleQueue[DraftEvent], kind: type[Any]) -> Any:
    """The next event, which is of that kind."""
    event = await asyncio.to_thread(events.get, timeout=30)
    assert isinstance(event, kind), event
    return event


@pytest.fixture(scope="module")
def pair(
    tiny_llama: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Cluster, Cluster]]:
    """Two verifiers of one drafter: the first projects its features, the second does not."""
    folders = [tmp_path_factory.mktemp(name) for name in ("projects", "captured")]
    first = Cluster(folders[0], tiny_llama, tiny_checkpoint, "")
    second = Cluster(folders[1], tiny_llama, tiny_checkpoint, "", drafter=first.drafter)
    try:
        first.start_drafter()
        first.start_verifier("--project-features", "on")
        second.start_verifier()
        first.wait()
        second.wait()
        yield first, second
    finally:
        second.stop()
        first.stop()


def generate(cluster: Cluster, length: int = LENGTH) -> tuple[list[int], pb.Usage]:
    request = pb.GenerateRequest(
        request_id="projection",
        tokens=PROMPT,
        output_start=len(PROMPT),
        sampling=pb.Sampling(temperature=0.0, max_tokens=length, ignore_eos=True),
    )
    with grpc.insecure_channel(cluster.verifier) as channel:
        frames = list(VerifierServiceStub(channel).Generate(request))
    return [token for frame in frames for token in frame.tokens.ids], frames[-1].finish.usage


def drafted(cluster: Cluster) -> bool:
    return generate(cluster, 30)[1].drafted_rounds > 0


def projections(cluster: Cluster) -> int:
    """Links that the verifier has projected features for."""
    return (cluster.folder / "verifier.log").read_text().count("projected here to 32 elements")


def test_projected_features_change_no_token(
    pair: tuple[Cluster, Cluster], tiny_reference: PreTrainedModel
) -> None:
    for cluster in pair:
        wait_until(lambda c=cluster: drafted(c), "a drafted round")  # type: ignore[misc]
    assert [projections(cluster) for cluster in pair] == [1, 0]
    (text, usage), (captured, other) = map(generate, pair)
    prompt = torch.tensor([PROMPT])
    expected = tiny_reference.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=LENGTH,
        min_new_tokens=LENGTH, do_sample=False, pad_token_id=1, eos_token_id=None,
    )[0, len(PROMPT) :]  # fmt: skip
    assert text == captured == expected.tolist()
    # How many of the rounds is up to the machine: the prompt's rows come by bulk.
    assert usage.drafted_rounds > 0
    assert other.drafted_rounds > 0


def test_a_drafter_that_returns_is_sent_projected_features_again(
    pair: tuple[Cluster, Cluster],
) -> None:
    first, second = pair
    wait_until(lambda: drafted(first), "a drafted round")
    before, links = generate(first)[0], projections(first)
    first.kill("drafter")
    wait_until(lambda: not drafted(first), "a plain round")
    first.start_drafter()
    first.wait()
    wait_until(lambda: drafted(first) and drafted(second), "a drafted round after the restart")
    assert projections(first) == links + 1
    after, usage = generate(first)
    assert after == before
    assert usage.drafted_rounds > 0
