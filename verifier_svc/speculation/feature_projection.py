"""Features projected on the verifier: a drafter's first step, taken before they are sent."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch

from speckernels.packed_linear import pack_linears
from speckernels.projection import FeatureProjection
from speckernels.tensor_codec import unpack
from specserve.throwaway_thread import in_throwaway_thread
from specwire.errors import DataLoss
from specwire.v1 import drafter_pb2 as pb

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Projected:
    """What a link's features go through before they travel."""

    projection: FeatureProjection
    dtype: torch.dtype

    @classmethod
    def of(cls, form: pb.ProjectionForm, rows: torch.Tensor) -> Self:
        """Take the weights [rows, feature width] as the protocol puts them below each other."""
        norms = rows[0].clone().view(form.norms, -1) if form.norms else None
        with torch.device("meta"):
            fc = torch.nn.Linear(rows.shape[1], len(rows) - bool(form.norms), bias=False)
        fc.weight = torch.nn.Parameter(rows[bool(form.norms) :], requires_grad=False)
        layers = torch.nn.Sequential(fc)
        pack_linears(layers)
        return cls(FeatureProjection(norms, form.eps, layers), rows.dtype)

    def __call__(self, features: Items[torch.Tensor]) -> torch.Tensor:
        """Project captured rows [n, feature width], joined along their first dimension."""
        return self.projection(torch.cat(list(features)).to(self.dtype))


class Projector:
    """Gets the projection of the drafter that is linked, onto the target's device.

    It is kept beyond its link: one that is made again to the same checkpoint needs no other.
    """

    def __init__(self, device: torch.device | None) -> None:
        """Take where features are; None has them travel as they were captured."""
        self._device = device
        # The checkpoint and dtype of the drafter that it came from.
        self._source = ("", "")
        self._projected: Projected | None = None
        self._link = 0

    async def adopt(self, link: int, stub: Any, announced: pb.DescribeResponse) -> None:
        """Ask the drafter of a new link for its projection, where it announced one.

        Raises:
            DataLoss: the weights are not those that were sent, or not as announced.
            InvalidRequest: a tensor that is none.
            AioRpcError: the call has failed.
        """
        self._link = 0
        if self._device is None:
            return
        if not announced.projected_width:
            logger.info("features travel as captured: this drafter takes no others")
            return
        source = announced.checkpoint_hash, announced.dtype
        if self._projected is None or self._source != source:
            self._projected = None  # its memory is free for the next
            call = stub.Projection(pb.ProjectionRequest(checkpoint_hash=source[0]))
            weights = await _receive(call, announced)
            try:
                projected = await asyncio.to_thread(
                    partial(in_throwaway_thread, _load, *weights, self._device)
                )
            except torch.OutOfMemoryError as error:
                logger.warning("features travel as captured: no memory to project them: %s", error)
                return
            self._source, self._projected = source, projected
        self._link = link
        logger.info("features are projected here to %d elements", announced.projected_width)

    def form(self, link: int, features: Items[torch.Tensor]) -> tuple[Items[torch.Tensor], bool]:
        """Features as they travel on a link, and whether that is projected."""
        projected = self._projected
        if link != self._link or projected is None:
            return features, False
        if not features:
            return features, True
        try:
            rows = projected(features)
        except torch.OutOfMemoryError:
            logger.warning("features travel as captured from now on: no memory to project them")
            self._projected = None
            return features, False
        return torch.split(rows, [len(piece) for piece in features]), True


def _load(form: pb.ProjectionForm, pieces: Items[torch.Tensor], device: torch.device) -> Projected:
    return Projected.of(form, torch.cat(list(pieces)).to(device))


async def _receive(
    messages: AsyncIterable[pb.ProjectionResponse | None], announced: pb.DescribeResponse
) -> tuple[pb.ProjectionForm, list[torch.Tensor]]:
    """The form of a projection and its weights, checked against what was announced."""
    states = len(announced.aux_layer_ids)
    form: pb.ProjectionForm | None = None
    pieces: list[torch.Tensor] = []
    digest, told = hashlib.sha256(), b""
    async for message in messages:
        if message is None:
            raise DataLoss("projection: a message could not be decoded.")
        if message.HasField("form"):
            form = message.form
        elif message.HasField("rows"):
            pieces.append(unpack(message.rows, "projection"))
            digest.update(message.rows.data)
        else:
            told = message.digest
    if told != digest.digest():
        raise DataLoss("projection: the weights that came are not those that were sent.")
    if form is None or form.norms not in (0, 1, states):
        raise DataLoss(f"projection: its form must have 0, 1 or {states} norms.")
    expected = [announced.projected_width + bool(form.norms), states * announced.target_hidden_size]
    shapes = {(*piece.shape[1:], piece.dtype) for piece in pieces}
    found = [sum(map(len, pieces)), *(pieces[0].shape[1:] if pieces else ())]
    if len(shapes) != 1 or found != expected:
        raise DataLoss(f"projection: its weights are {found}, {expected} were announced.")
    return form, pieces
