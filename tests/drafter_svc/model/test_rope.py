"""Scaled frequencies against transformers' own embedding module."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from drafter_svc.model.rope import Rope

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"rope_type": "linear", "factor": 4.0},
        LLAMA3,
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    ],
)
def test_tables_are_those_of_transformers(scaling: dict[str, Any] | None) -> None:
    kind = scaling or {"rope_type": "default"}
    config = LlamaConfig(
        hidden_size=32, num_attention_heads=2, head_dim=16, max_position_embeddings=512,
        rope_parameters={**kind, "rope_theta": 5000.0},
    )  # fmt: skip
    positions = torch.tensor([[0, 3, 70, 500]])
    expected = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
    found = Rope(16, 5000.0, scaling, 512)(positions)
    for table, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(table.squeeze(-2), wanted, rtol=1e-4, atol=1e-4)


def test_the_table_is_made_where_the_positions_are() -> None:
    """Modules are built on the meta device before their weights are read."""
    with torch.device("meta"):
        ropes = [Rope(8, 1e4), Rope(8, 1e4, LLAMA3, 64)]
    for rope in ropes:
        assert rope(torch.arange(3))[0].isfinite().all()
