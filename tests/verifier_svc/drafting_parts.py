"""A drafting without an engine, a model or a drafter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from specwire.draft import (
    Draft,
    DraftCost,
    DraftEvent,
    DraftPort,
    Extend,
    Need,
    Proposals,
    Welcome,
)
from verifier_svc.blocks import Extent
from verifier_svc.cache import KVCache
from verifier_svc.drafting import Drafting
from verifier_svc.generation import Generation, Sampling
from verifier_svc.policy import DraftLengthPolicy
from verifier_svc.sequence import Sequence as Generating

WELCOME = Welcome("hash", "", (0, 1), 4, 97, 97, max_length=1000, max_draft_tokens=8)
LINK = 5


@dataclass
class Recorder:
    """A DraftPort that only remembers."""

    rounds: list[tuple[int, list[Extend], list[int]]] = field(default_factory=list)
    bulks: list[Extend] = field(default_factory=list)

    def start(self, deliver: Callable[[DraftEvent], None]) -> None:
        pass

    async def close(self) -> None:
        pass

    def round(
        self,
        link: int,
        extends: Sequence[Extend],
        features: Sequence[torch.Tensor],
        closes: Sequence[int],
    ) -> None:
        assert [len(e.tokens) for e in extends] == [len(f) for f in features]
        self.rounds.append((link, list(extends), list(closes)))

    def bulk(self, link: int, extend: Extend, features: torch.Tensor) -> None:
        assert link == LINK
        assert len(extend.tokens) == len(features)
        self.bulks.append(extend)

    @property
    def closed(self) -> list[int]:
        return [seq for _, _, closes in self.rounds for seq in closes]


def drafting_with(
    port: DraftPort[torch.Tensor],
    policy: DraftLengthPolicy,
    device: str = "here",
    feature_width: int = 8,
) -> Drafting:
    cache = KVCache(
        blocks=100, layers=1, kv_heads=1, head_dim=4, feature_width=feature_width,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )  # fmt: skip
    return Drafting(port, policy, cache, deadline=0.1, devices=[device])


def decoding(length: int, seq: int = 1, max_draft_tokens: int = 8) -> Generating:
    """A sequence whose prompt has been run."""
    tokens = tuple(range(length))
    made = Generating(
        seq, Generation("r", tokens, length - 1, Sampling(max_tokens=99), max_draft_tokens),
        frozenset(), 1000,
    )  # fmt: skip
    made.extent = Extent(0, 50)
    made.computed = length - 1
    return made


def answer(*drafts: Draft, needs: tuple[Need, ...] = ()) -> Proposals:
    return Proposals(drafts, needs, DraftCost())
