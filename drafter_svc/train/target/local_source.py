"""A source of features that runs the target in this process, over packed documents."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface

from drafter_svc.train.target.feature_source import Captured
from drafter_svc.train.target.target import Target

_NAME = "holdcourse-documents"
# Arguments of transformers' attention functions that change what is attended to.
_OTHER = ("softcap", "sliding_window", "s_aux", "position_bias")
# Tokens in one forward: products grow no faster beyond, only their results do.
_FORWARD_TOKENS = {"cpu": 2048, "cuda": 16384}


class LocalSource:
    """A ``FeatureSource`` over a target that it has for itself from now on.

    Documents share forwards without padding. What they share changes a state in its last bits.
    """

    def __init__(self, target: Target) -> None:
        target.model.set_attn_implementation(_NAME)
        self._target = target
        self._device = target.embedding.weight.device
        self._limit: int = target.config.max_position_embeddings

    def capture(
        self, documents: Sequence[Sequence[int]], aux_layers: tuple[int, ...]
    ) -> list[Captured]:
        """States of each document, in order. Raises ValueError for a document over the limit."""
        longest = max(map(len, documents))
        if longest > self._limit:
            raise ValueError(
                f"a document of {longest} tokens is over the target's limit of {self._limit}"
            )
        return [
            captured
            for group in _groups(documents, _FORWARD_TOKENS.get(self._device.type, 2048))
            for captured in self._run(group, aux_layers)
        ]

    def _run(
        self, documents: Sequence[Sequence[int]], aux_layers: tuple[int, ...]
    ) -> list[Captured]:
        lengths = [len(ids) for ids in documents]
        ids = torch.tensor([token for ids in documents for token in ids], device=self._device)
        positions = torch.cat([torch.arange(length) for length in lengths]).to(self._device)
        features, final = self._target.capture(
            ids[None], aux_layers, position_ids=positions[None], document_lengths=lengths
        )
        pairs = zip(torch.split(features[0], lengths), torch.split(final[0], lengths), strict=True)
        return [Captured(*pair) for pair in pairs]


def _groups(documents: Sequence[Sequence[int]], budget: int) -> Iterator[list[Sequence[int]]]:
    group: list[Sequence[int]] = []
    for ids in documents:
        if group and sum(map(len, group)) + len(ids) > budget:
            yield group
            group = []
        group.append(ids)
    yield group


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    document_lengths: list[int],
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document; no mask is ever built.

    Follows transformers' attention interface: query ``[1, heads, N, d]``, key and value
    ``[1, kv_heads, N, d]``; returns ``[1, N, heads, d]``. Raises ``ValueError`` for a layer that
    asks for more than standard attention.
    """
    for extra in _OTHER:
        if kwargs.get(extra) is not None:
            raise ValueError(f"{type(module).__name__} asks for {extra}, which is not supported")
    grouped = query.shape[1] != key.shape[1]
    parts = (torch.split(states, document_lengths, dim=2) for states in (query, key, value))
    pieces = [
        functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped
        )
        for q, k, v in zip(*parts, strict=True)
    ]
    return torch.cat(pieces, dim=2).transpose(1, 2), None


AttentionInterface.register(_NAME, _attend)
