"""A round as messages that its drafter takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from speckernels.tensor_codec import pack
from specwire import codec
from specwire.messages import AppendEntries
from specwire.v1 import drafter_pb2 as pb

# What a message takes at most beside its extends, rows and closes; an extend with its opening
# beside tokens and biases; and each token, close or bias.
_FRAME_BYTES, _EXTEND_BYTES, _EACH_BYTES = 128, 128, 16


def round_messages(
    extends: Sequence[AppendEntries],
    features: Sequence[torch.Tensor],
    closes: Sequence[int],
    most: int,
    *,
    projected: bool = False,
) -> Iterator[pb.DraftRequest]:
    """Encode a round, cut between sequences where one message might have over `most` bytes.

    `features[i]` are the rows of `extends[i]`, [len(extends[i].tokens), width], `projected` or as
    captured. Messages have no
    numbers yet; what is closed is closed by the first. A sequence alone is never cut.
    """
    size = _FRAME_BYTES + _EACH_BYTES * len(closes)
    first = 0
    for index, (extend, rows) in enumerate(zip(extends, features, strict=True)):
        adds = rows.nbytes + _most_bytes(extend)
        if index > first and size + adds > most:
            yield _message(extends[first:index], features[first:index], closes, projected)
            first, size, closes = index, _FRAME_BYTES, ()
        size += adds
    yield _message(extends[first:], features[first:], closes, projected)


def _most_bytes(extend: AppendEntries) -> int:
    biases = len(extend.opening.logit_bias) if extend.opening is not None else 0
    return _EXTEND_BYTES + _EACH_BYTES * (len(extend.tokens) + biases)


def _message(
    extends: Sequence[AppendEntries],
    features: Sequence[torch.Tensor],
    closes: Sequence[int],
    projected: bool,
) -> pb.DraftRequest:
    request = pb.DraftRequest()
    message = request.round
    message.extends.extend(map(codec.encode_extend, extends))
    message.closes.extend(closes)
    if features:
        message.projected = projected
        pack(*features, into=message.features)
    return request
