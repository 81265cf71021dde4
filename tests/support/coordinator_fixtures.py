"""A drafting without an engine, a model or a drafter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from specwire.messages import (
    AppendEntries,
    Draft,
    DraftCost,
    DrafterInfo,
    DraftEvent,
    DraftPort,
    Proposals,
    ResendFrom,
)
from verifier_svc.draft_length.controller import DraftLengthController
from verifier_svc.kv.block_pool import BlockRange
from verifier_svc.kv.kv_cache import KVCache
from verifier_svc.request.sequence import Sequence as Generating
from verifier_svc.request.types import GenerationRequest, Sampling
from verifier_svc.speculation.coordinator import DraftCoordinator

WELCOME = DrafterInfo("hash", "", (0, 1), 4, 97, 97, max_length=1000, max_draft_tokens=8)
LINK = 5


@dataclass
class Recorder:
    """A DraftPort that only remembers."""

    rounds: list[tuple[int, list[AppendEntries], list[int]]] = field(default_factory=list)
    bulks: list[AppendEntries] = field(default_factory=list)

    def start(self, deliver: Callable[[DraftEvent], None]) -> None:
        pass

    async def close(self) -> None:
        pass

    def round(
        self,
        link: int,
        extends: Sequence[AppendEntries],
        features: Sequence[torch.Tensor],
        closes: Sequence[int],
    ) -> None:
        assert [len(e.tokens) for e in extends] == [len(f) for f in features]
        self.rounds.append((link, list(extends), list(closes)))

    def bulk(self, link: int, extend: AppendEntries, features: torch.Tensor) -> None:
        assert link == LINK
        assert len(extend.tokens) == len(features)
        self.bulks.append(extend)

    @property
    def closed(self) -> list[int]:
        return [seq for _, _, closes in self.rounds for seq in closes]


def drafting_with(
    port: DraftPort[torch.Tensor],
    policy: DraftLengthController,
    device: str = "here",
    feature_width: int = 8,
) -> DraftCoordinator:
    cache = KVCache(
        blocks=100, layers=1, kv_heads=1, head_dim=4, feature_width=feature_width,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )  # fmt: skip
    return DraftCoordinator(port, policy, cache, deadline=0.1, devices=[device])


def decoding(length: int, seq: int = 1, max_draft_tokens: int = 8) -> Generating:
    """A sequence whose prompt has been run."""
    tokens = tuple(range(length))
    made = Generating(
        seq, GenerationRequest("r", tokens, length - 1, Sampling(max_tokens=99), max_draft_tokens),
        frozenset(), 1000,
    )  # fmt: skip
    made.extent = BlockRange(0, 50)
    made.computed = length - 1
    return made


def answer(*drafts: Draft, needs: tuple[ResendFrom, ...] = ()) -> Proposals:
    return Proposals(drafts, needs, DraftCost())
