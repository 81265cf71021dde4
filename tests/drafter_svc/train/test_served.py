"""What training unrolls and evaluation replays is what serving drafts, for each shape."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drafter_svc.inference.chain import Chain, ChainOutput
from drafter_svc.inference.chain_runner import ChainRequest
from drafter_svc.inference.entry_forward import EntryRows
from drafter_svc.inference.fused_model import FusedDrafter
from drafter_svc.train.data.documents import Document, pack
from drafter_svc.train.evaluation.replay import draft_chains
from drafter_svc.train.objective.ttt import plan_chain, unroll
from tests.support.drafter_fixtures import GREEDY, Parts, random_text

BASE, STEPS = 13, 5
SHAPES: list[dict[str, Any]] = [
    {},
    {"num_hidden_layers": 3},
    {"own_embeddings": True},
    {"own_embeddings": True, "target_hidden_size": 12},
    {"num_hidden_layers": 2, "own_embeddings": True, "norm_output": False},
    {"num_hidden_layers": 2, "sliding_window": 7, "attention_bias": True},
    {"mtp_head": True, "aux_layers": (4,)},
    {"mtp_head": True, "aux_layers": (4,), "fc_norm": False, "norm_output": False},
    {"mtp_head": True, "aux_layers": (4,), "num_hidden_layers": 3, "qk_norm": True},
]


class Heard(FusedDrafter):
    """Keeps the logits of each chain step."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.logits: list[Tensor] = []

    def finish(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        state, logits = super().finish(hidden)
        self.logits.append(logits)
        return state, logits


def served(
    parts: Parts, table: nn.Embedding, tokens: list[int], features: Tensor
) -> tuple[ChainOutput, list[Tensor]]:
    """The greedy chain behind ``BASE`` real entries, and the logits of its steps."""
    heard = Heard(parts.module, parts.module.embeddings(table).weight, 64)
    chain = Chain(heard, parts.vocabulary, parts.cache)
    slot, _ = parts.cache.reserve((0, 0), BASE + STEPS, set())
    chain.append([EntryRows(slot, 0, tokens[1 : BASE + 1])], [features[:BASE]])
    (guess,) = chain.draft([ChainRequest(slot, BASE, STEPS, GREEDY)])
    return guess, [logits[0] for logits in heard.logits]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training_and_replay_compute_the_served_chain(shape: dict[str, Any]) -> None:
    parts = Parts(**shape)
    table = nn.Embedding(128, 16, _weight=parts.embedding).requires_grad_(False)
    text = random_text(BASE + 1, 3)
    width = len(parts.config.aux_layers) * parts.config.target_hidden_size
    features = text.features[:, :width]
    guess, logits = served(parts, table, text.tokens, features)
    assert len(set(guess.tokens)) > 1

    ids = [*text.tokens, *guess.tokens]
    batch = pack([Document(ids, [True] * len(ids))])
    padded = torch.cat([features, torch.randn(len(ids) - len(features), features.shape[1])])
    plan = plan_chain(batch, STEPS)
    for step, hidden, expected in zip(
        plan, unroll(parts.module, table, batch, padded, plan), logits, strict=True
    ):
        (row,) = (step.columns == BASE - 1).nonzero().flatten().tolist()
        torch.testing.assert_close(parts.module.logits(hidden[row]), expected, rtol=1e-4, atol=1e-4)

    proposed = draft_chains(
        parts.module,
        table,
        parts.target_ids,
        torch.tensor(text.tokens),
        features,
        columns=torch.tensor([BASE - 1]),
        length=STEPS,
    )
    assert proposed.tolist() == [list(guess.tokens)]


def test_embeddings_of_its_own_replace_the_targets() -> None:
    module = Parts(own_embeddings=True).module
    assert module.embeddings(nn.Embedding(128, 16)) is module.embed_tokens
