"""The tiny drafter put together for serving, and a slow chain to compare it with."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from drafter_svc.engine.sequences import SequenceTable
from drafter_svc.engine.worker import Worker
from drafter_svc.inference.chain import Chain
from drafter_svc.inference.fused_model import FusedDrafter
from drafter_svc.inference.kv_cache import KVCache, Slab
from drafter_svc.inference.sampling import DraftVocabulary
from drafter_svc.model.eagle import EagleDrafter
from speckernels import CaptureFn
from specwire.messages import AppendEntries, DraftBudget, SequenceContext
from specwire.v1 import drafter_pb2 as pb
from tests.support.tiny_drafter import tiny_config, tiny_drafter

GREEDY = SequenceContext(first_token=3, output_start=1)
MAX_LENGTH = 400
# What a drafter of these parts announces.
DESCRIPTION = pb.DescribeResponse(
    checkpoint_hash="abc",
    target_fingerprint="feed",
    aux_layer_ids=[1, 2, 3],
    target_hidden_size=16,
    hidden_size=16,
    vocab_size=128,
    draft_vocab_size=40,
    max_length=400,
    max_draft_tokens=8,
)

Choose = Callable[[Tensor, list[int]], int]


class Parts:
    """A drafter over random embeddings; draft ids are every third target id."""

    record: CaptureFn | None = None

    def __init__(self, rows: int = 4096, lookup_match: int = 0, **changes: Any) -> None:
        self.config = tiny_config(vocab_size=128, **changes)
        self.module: EagleDrafter = tiny_drafter(self.config).eval().requires_grad_(False)
        self.embedding = torch.randn(128, 16)
        self.target_ids = torch.arange(40) * 3 + 2
        fused = FusedDrafter(self.module, self.embedding, MAX_LENGTH + 16)
        self.vocabulary = DraftVocabulary(self.target_ids, 128)
        layers, head_dim = self.config.num_hidden_layers, self.config.head_dim
        row = layers, self.config.num_key_value_heads, head_dim
        row_bytes = 2 * math.prod(row) * 4
        self.cache = KVCache(*row, torch.float32, torch.device("cpu"), rows * row_bytes)
        self.chain = Chain(fused, self.vocabulary, self.cache, self.record)
        sequences = SequenceTable(8, MAX_LENGTH, lookup_match)
        self.worker = Worker(self.chain, self.cache, sequences, 16)

    def state(self, slot: Slab) -> Tensor:
        """What a chain of the slot starts from."""
        assert slot.ready
        return self.chain._states.rows[slot.number]

    def slow_draft(self, text: "Text", base: int, length: int, choose: Choose) -> "Slow":
        """Recomputes every row in every step. `choose(logits, guesses)` gives a draft id."""
        tokens = list(text.tokens[1 : base + 1])
        states = list(self.module.fuse(text.features[:base]))
        result = Slow()
        for _ in range(length):
            hidden = self.module.layer(
                self.embedding[torch.tensor(tokens)],
                torch.stack(states),
                torch.arange(len(tokens)),
                partial(causal, self.config.sliding_window),
            )[-1]
            logits = self.module.logits(hidden)
            draft_id = choose(logits, result.tokens)
            result.tokens.append(int(self.target_ids[draft_id]))
            result.confidence.append(float(logits.softmax(-1)[draft_id]))
            tokens.append(result.tokens[-1])
            states.append(self.module.recycle(hidden))
        return result


@dataclass
class Slow:
    tokens: list[int] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)


@dataclass
class Text:
    """Committed tokens, and a feature for each position."""

    tokens: list[int]
    features: Tensor

    def extend(
        self,
        seq: int,
        start: int,
        stop: int,
        draft_tokens: int = 0,
        opening: SequenceContext = GREEDY,
        lookup_tokens: int = 0,
    ) -> tuple[AppendEntries, Tensor]:
        """Entries [start, stop) as they travel."""
        wish = DraftBudget(draft_tokens, lookup_tokens)
        tokens = tuple(self.tokens[start + 1 : stop + 1])
        return (
            AppendEntries(seq, start, tokens, wish, opening if start == 0 else None),
            self.features[start:stop],
        )


def random_text(length: int, seed: int) -> Text:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 128, (length,), generator=generator).tolist()
    tokens[0] = GREEDY.first_token
    return Text(tokens, torch.randn(length, 48, generator=generator))


def greedy(logits: Tensor, _: Sequence[int]) -> int:
    return int(logits.argmax())


def causal(window: int | None, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    rows = torch.arange(len(queries))
    distance = rows[:, None] - rows
    out = functional.scaled_dot_product_attention(
        queries.transpose(0, 1)[None],
        keys.transpose(0, 1)[None],
        values.transpose(0, 1)[None],
        attn_mask=(distance >= 0) & (distance < (window or len(queries))),
        enable_gqa=True,
    )
    return out[0].transpose(0, 1).flatten(-2)
