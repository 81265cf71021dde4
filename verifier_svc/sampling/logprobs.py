"""Log-probabilities of tokens by the target's unprocessed logits."""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch

from speckernels import to_device_async
from verifier_svc.request.types import Logprobs


def logprobs_of(logits: torch.Tensor, tokens: Items[int], tops: Items[int]) -> list[Logprobs]:
    """Of one token of each row of fp32 logits [rows, vocab], and of the row's best `tops`."""
    most = max(tops)
    values = torch.log_softmax(logits, -1)
    best = values.topk(most)
    drawn = values.gather(1, to_device_async(tokens, logits.device)[:, None])
    # One copy to the host; float64 holds ids and fp32 values as they are.
    table = torch.cat([part.double() for part in (drawn, best.values, best.indices)], 1).tolist()
    return [
        Logprobs(row[0], tuple(zip(map(int, row[1 + most :]), row[1 : 1 + top], strict=False)))
        for row, top in zip(table, tops, strict=True)
    ]
