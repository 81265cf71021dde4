"""Projections of drafters, as a verifier fetches and applies them; the drafter is scripted."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from speckernels.tensor_codec import pack
from specwire.errors import DataLoss, InvalidRequest
from specwire.v1 import drafter_pb2 as pb
from verifier_svc.speculation import feature_projection
from verifier_svc.speculation.feature_projection import Projector

# Two captured states of 8 elements, projected to 6.
ANNOUNCED = pb.DescribeResponse(
    checkpoint_hash="c", dtype="float32", aux_layer_ids=[1, 2], target_hidden_size=8,
    hidden_size=6, projected_width=6,
)  # fmt: skip
NOT_SENT = "projection: the weights that came are not those that were sent."
CPU = torch.device("cpu")

Messages = list[pb.ProjectionResponse | None]


def served(norms: int = 2, rows: torch.Tensor | None = None) -> Messages:
    """What a drafter answers that projects by these weights, in three messages of rows."""
    if rows is None:
        rows = torch.randn(6 + bool(norms), 16, generator=torch.Generator().manual_seed(1))
    pieces = [pack(part) for part in rows.split(3)]  # type: ignore[no-untyped-call]
    digest = hashlib.sha256(b"".join(piece.data for piece in pieces)).digest()
    return [
        pb.ProjectionResponse(form=pb.ProjectionForm(norms=norms, eps=1e-5)),
        *(pb.ProjectionResponse(rows=piece) for piece in pieces),
        pb.ProjectionResponse(digest=digest),
    ]


class Stub:
    """A drafter's stub that answers by what is given."""

    def __init__(self, messages: Messages) -> None:
        self.messages = messages
        self.asked: list[str] = []

    async def Projection(  # noqa: N802
        self, request: pb.ProjectionRequest
    ) -> AsyncIterator[pb.ProjectionResponse | None]:
        self.asked.append(request.checkpoint_hash)
        for message in self.messages:
            yield message


def announced(**changes: Any) -> pb.DescribeResponse:
    message = pb.DescribeResponse()
    message.CopyFrom(ANNOUNCED)
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def rows_of(messages: Messages) -> torch.Tensor:
    data = b"".join(m.rows.data for m in messages if m is not None and m.HasField("rows"))
    return torch.frombuffer(bytearray(data), dtype=torch.float32).view(-1, 16)


@pytest.mark.parametrize("norms", [0, 1, 2])
async def test_rows_are_normed_and_projected(norms: int) -> None:
    stub, projector = Stub(served(norms)), Projector(CPU)
    await projector.adopt(7, stub, ANNOUNCED)
    weights, features = rows_of(stub.messages), torch.randn(5, 16)
    pieces, projected = projector.form(7, [features[:2], features[2:2], features[2:]])
    assert projected
    assert [len(piece) for piece in pieces] == [2, 0, 3]
    got = torch.cat(list(pieces))
    expected = features
    if norms:
        parts, scales = features.view(5, norms, -1), weights[0].view(norms, -1)
        mean = parts.square().mean(-1, keepdim=True)
        expected = (parts * torch.rsqrt(mean + 1e-5) * scales).view(5, -1)
    torch.testing.assert_close(got, functional.linear(expected, weights[bool(norms) :]))
    assert projector.form(7, [features[:0]])[0][0].shape == (0, 6)
    # What is meant for another link is dropped on its way, whatever its width.
    other = features[:, :3]
    (left,), projected = projector.form(6, [other])
    assert left is other
    assert not projected


async def test_features_of_another_dtype_take_that_of_the_weights() -> None:
    stub, projector = Stub(served()), Projector(CPU)
    await projector.adopt(7, stub, ANNOUNCED)
    features = torch.randn(5, 16).bfloat16()
    (got,), _ = projector.form(7, [features])
    assert got.dtype == torch.float32
    assert torch.equal(got, projector.form(7, [features.float()])[0][0])


async def test_a_projection_is_kept_for_links_to_the_same_checkpoint() -> None:
    stub, projector = Stub(served()), Projector(CPU)
    features = torch.randn(5, 16)
    for link in (1, 2):
        await projector.adopt(link, stub, ANNOUNCED)
        assert projector.form(link, [features])[1]
        assert not projector.form(link - 1, [features])[1]
    assert stub.asked == ["c"]
    await projector.adopt(3, stub, announced(checkpoint_hash="d"))
    await projector.adopt(4, stub, announced(checkpoint_hash="d", dtype="bfloat16"))
    assert stub.asked == ["c", "d", "d"]
    await projector.adopt(5, stub, announced(checkpoint_hash="e", projected_width=0))
    assert not projector.form(5, [features])[1]
    assert stub.asked == ["c", "d", "d"]


async def test_without_a_device_nothing_is_asked_for() -> None:
    stub, projector = Stub(served()), Projector(None)
    await projector.adopt(1, stub, ANNOUNCED)
    assert not projector.form(1, [torch.randn(5, 16)])[1]
    assert stub.asked == []


def lose_a_piece(messages: Messages) -> None:
    del messages[2]


def swap_pieces(messages: Messages) -> None:
    messages[1], messages[2] = messages[2], messages[1]


def damage(messages: Messages) -> None:
    assert messages[1] is not None
    data = messages[1].rows.data
    messages[1].rows.data = bytes([data[0] ^ 1]) + data[1:]


def cut_short(messages: Messages) -> None:
    messages.pop()


def garble(messages: Messages) -> None:
    messages[1] = None


def lose_the_form(messages: Messages) -> None:
    messages.pop(0)


def three_norms(messages: Messages) -> None:
    assert messages[0] is not None
    messages[0].form.norms = 3


def fewer_rows(messages: Messages) -> None:
    messages[:] = served(rows=torch.randn(6, 16))


def narrower_rows(messages: Messages) -> None:
    messages[:] = served(rows=torch.randn(7, 15))


def no_rows(messages: Messages) -> None:
    messages[1:] = [pb.ProjectionResponse(digest=hashlib.sha256(b"").digest())]


FAULTS = [
    (lose_a_piece, NOT_SENT),
    (swap_pieces, NOT_SENT),
    (damage, NOT_SENT),
    (cut_short, NOT_SENT),
    (garble, "projection: a message could not be decoded."),
    (lose_the_form, "projection: its form must have 0, 1 or 2 norms."),
    (three_norms, "projection: its form must have 0, 1 or 2 norms."),
    (fewer_rows, "projection: its weights are [6, 16], [7, 16] were announced."),
    (narrower_rows, "projection: its weights are [7, 15], [7, 16] were announced."),
    (no_rows, "projection: its weights are [0], [7, 16] were announced."),
]


@pytest.mark.parametrize(("fault", "sentence"), FAULTS, ids=lambda of: getattr(of, "__name__", ""))
async def test_weights_that_are_not_as_announced_are_no_projection(
    fault: Callable[[Messages], None], sentence: str
) -> None:
    messages = served()
    fault(messages)
    stub, projector = Stub(messages), Projector(CPU)
    with pytest.raises(DataLoss) as caught:
        await projector.adopt(7, stub, ANNOUNCED)
    assert str(caught.value) == sentence
    assert not projector.form(7, [torch.randn(5, 16)])[1]
    # The next try may succeed.
    stub.messages = served()
    await projector.adopt(8, stub, ANNOUNCED)
    assert projector.form(8, [torch.randn(5, 16)])[1]


async def test_a_tensor_that_is_none_is_refused() -> None:
    messages = served()
    assert messages[1] is not None
    messages[1].rows.data += b"\0"
    with pytest.raises(InvalidRequest, match="projection: shape"):
        await Projector(CPU).adopt(7, Stub(messages), ANNOUNCED)


async def test_without_memory_features_travel_as_captured(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(feature_projection, "_load", fail)
    projector = Projector(CPU)
    with caplog.at_level(logging.WARNING):
        await projector.adopt(7, Stub(served()), ANNOUNCED)
    assert not projector.form(7, [torch.randn(5, 16)])[1]
    assert "no memory to project them: none left" in caplog.text
