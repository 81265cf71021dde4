"""Features that verifiers project: what is served to them, and what comes back."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import pytest
import torch

from drafter_svc.inference.chain_runner import ChainRequest
from drafter_svc.inference.entry_forward import EntryRows
from drafter_svc.model.feature_projection import ProjectionWeights
from speckernels.tensor_codec import pack, unpack
from specwire import codec
from specwire.limits import MAX_SHORT_BYTES
from specwire.messages import CatchUpAck, Draft
from specwire.v1 import drafter_pb2 as pb
from tests.support.drafter_fixtures import DESCRIPTION, GREEDY, Parts, Text, random_text
from tests.support.served_drafter import Running, Sent, Servers, check, refusal
from tests.support.tiny_drafter import tiny_config, tiny_drafter

NORMS: dict[str, dict[str, Any]] = {
    "of each state": {},
    "none": {"fc_norm": False},
    "of all states": {"fc_norm": False, "norm_before_fc": True},
}
INVALID, REFUSED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION


def weights(parts: Parts) -> ProjectionWeights:
    found = ProjectionWeights.of(parts.module)
    assert found is not None
    return found


def projected(parts: Parts, sent: Sent) -> Sent:
    """The same rows as a verifier sends them that has projected them."""
    extend, rows = sent
    return extend, parts.module.fuse(rows)


@pytest.mark.parametrize("norms", NORMS)
def test_all_weights_are_served_in_small_messages(norms: str) -> None:
    wide = {"hidden_size": 512, "target_hidden_size": 512}
    module = tiny_drafter(tiny_config(**wide, **NORMS[norms]))
    found = ProjectionWeights.of(module)
    assert found is not None
    assert found.width == 512
    first, *rows, last = found.messages()
    assert first.form.eps == module.config.rms_norm_eps
    assert first.form.norms == {"of each state": 3, "none": 0, "of all states": 1}[norms]
    assert all(message.ByteSize() <= MAX_SHORT_BYTES for message in rows)
    assert len(rows) > 3
    table = torch.cat([unpack(message.rows, "rows") for message in rows])
    assert torch.equal(table[-512:], module.fc.weight)
    parameters = [*module.fc_norm.parameters()]
    if norms == "of all states":
        parameters.append(module.input_norm.weight)
    assert len(table) == 512 + bool(parameters)
    assert not parameters or torch.equal(table[0], torch.cat(tuple(parameters)))
    data = b"".join(message.rows.data for message in rows)
    assert last.digest == hashlib.sha256(data).digest()


@pytest.mark.parametrize(
    "changes",
    [
        {"mtp_head": True, "fc_norm": False, "aux_layers": (3,)},
        {"aux_layers": (3,)},
        {"hidden_size": 64, "own_embeddings": True},
    ],
    ids=["no projection", "of one state", "to wider rows"],
)
def test_what_would_save_nothing_is_not_served(changes: dict[str, Any]) -> None:
    assert ProjectionWeights.of(tiny_drafter(tiny_config(**changes))) is None


@pytest.mark.parametrize("norms", NORMS)
def test_chains_start_alike_from_rows_of_either_form(norms: str) -> None:
    parts = Parts(**NORMS[norms])
    texts = [random_text(20, seed) for seed in range(3)]
    guesses = []
    # As captured, all projected, and verifiers of both kinds in one batch.
    for number, forms in enumerate([(False,) * 3, (True,) * 3, (True, False, True)]):
        slots = [parts.cache.reserve((number, i), 24, set())[0] for i in range(3)]
        rows = [
            EntryRows(slot, 0, text.tokens[1:18]) for slot, text in zip(slots, texts, strict=True)
        ]
        pieces = [
            parts.module.fuse(text.features[:17]) if form else text.features[:17]
            for text, form in zip(texts, forms, strict=True)
        ]
        parts.chain.append(rows, pieces)
        guesses.append(parts.chain.draft([ChainRequest(slot, 17, 5, GREEDY) for slot in slots]))
    for text, *alike in zip(texts, *guesses, strict=True):
        slow = parts.slow_draft(text, 17, 5, lambda logits, _: int(logits.argmax()))
        for guess in alike:
            assert list(guess.tokens) == slow.tokens
            assert list(guess.confidence) == pytest.approx(slow.confidence, rel=1e-4)


@pytest.fixture(params=[False, True], ids=["gRPC", "same host"])
async def servers(request: pytest.FixtureRequest) -> AsyncIterator[Servers]:
    async with Servers(request.param) as servers:
        yield servers


async def serve(servers: Servers) -> Running:
    parts = Parts()
    return await servers.start(parts, weights(parts))


async def test_links_send_rows_of_either_form(servers: Servers) -> None:
    running = await serve(servers)
    described = await running.stub().Describe(pb.DescribeRequest())
    assert described.projected_width == 16
    near, far = await running.link(1), await running.link(2)
    texts = [random_text(40, 1), random_text(40, 2)]
    await near.send(texts[0].extend(5, 0, 9, 4))
    await far.send(projected(running.parts, texts[1].extend(5, 0, 9, 4)), projected=True)
    check(running, (await near.receive()).drafts[0], texts[0], 9, 4)
    check(running, (await far.receive()).drafts[0], texts[1], 9, 4)
    # A link may change its mind from message to message, and what was lost is sent anew.
    check(running, (await far.ask(texts[1].extend(5, 9, 12, 4))).drafts[0], texts[1], 12, 4)
    replay = projected(running.parts, texts[1].extend(5, 0, 14, 4))
    check(running, (await far.ask(replay, projected=True)).drafts[0], texts[1], 14, 4)


async def test_bulk_rows_may_come_projected(servers: Servers) -> None:
    running = await serve(servers)
    verifier = await running.link()
    bulk = await verifier.bulk()
    text = random_text(320, 1)
    extend, rows = projected(running.parts, text.extend(5, 0, 300))
    message = pb.BulkExtend(extend=codec.encode_extend(extend), features=pack(rows), projected=True)
    await bulk.write(pb.BulkRequest(extend=message))
    ack = codec.decode_ack((await bulk.read()).ack)
    assert replace(ack, compute_us=0) == CatchUpAck(5, 300, 300, 300)
    check(running, (await verifier.ask(text.extend(5, 300, 302, 3))).drafts[0], text, 302, 3)


async def test_rows_that_are_not_finite_harm_their_sequence_only(servers: Servers) -> None:
    running = await serve(servers)
    verifier = await running.link()
    good, bad = random_text(20, 1), random_text(20, 2)
    bad.features[2, 5] = torch.inf
    sent = [projected(running.parts, t.extend(seq, 0, 9, 4)) for seq, t in ((1, bad), (2, good))]
    answer = await verifier.ask(*sent, projected=True)
    assert answer.drafts[0] == Draft(1, 9, ())
    check(running, answer.drafts[1], good, 9, 4)


async def test_a_form_that_was_not_announced_is_refused(servers: Servers) -> None:
    running = await servers.start(Parts())
    described = await running.stub().Describe(pb.DescribeRequest())
    assert not described.projected_width
    text: Text = random_text(20, 1)
    sent = projected(running.parts, text.extend(5, 0, 9, 4))
    sentence = "features: projected ones are not announced, and not taken."
    verifier = await running.link()
    await verifier.send(sent, projected=True)
    assert await refusal(verifier.call) == (INVALID, sentence)
    verifier = await running.link(8)
    bulk = await verifier.bulk()
    extend, rows = projected(running.parts, text.extend(5, 0, 9))
    message = pb.BulkExtend(extend=codec.encode_extend(extend), features=pack(rows), projected=True)
    await bulk.write(pb.BulkRequest(extend=message))
    assert await refusal(bulk) == (INVALID, sentence)
    call = running.stub().Projection(pb.ProjectionRequest(checkpoint_hash="abc"))
    assert (await refusal(call))[0] == REFUSED


async def test_a_width_is_that_of_the_form(servers: Servers) -> None:
    running = await serve(servers)
    text = random_text(20, 1)
    for link, form in enumerate((False, True), 1):
        verifier = await running.link(link)
        captured = text.extend(5, 0, 9, 4)
        await verifier.send(
            captured if form else projected(running.parts, captured), projected=form
        )
        code, sentence = await refusal(verifier.call)
        assert code == INVALID
        assert f"shape must be [9, {16 if form else 48}]" in sentence


async def test_the_weights_are_those_of_the_checkpoint_that_is_meant(servers: Servers) -> None:
    running = await serve(servers)
    call = running.stub().Projection(pb.ProjectionRequest(checkpoint_hash="another"))
    code, sentence = await refusal(call)
    assert code == REFUSED
    assert "checkpoint_hash is abc here, another" in sentence
    asked = pb.ProjectionRequest(checkpoint_hash=DESCRIPTION.checkpoint_hash)
    served = [message async for message in running.stub().Projection(asked)]
    assert served == list(weights(running.parts).messages())
