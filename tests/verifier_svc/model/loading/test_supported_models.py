"""Families of models, made small: each is exact, or refused in a sentence that names the reason.

`make families` tries all that transformers knows.
"""

from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaConfig

from tests.families.walk import Outcome, outcome
from verifier_svc.model.loading.supported_models import positions_of, why_not

_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0 + i for i in range(8)],
    "original_max_position_embeddings": 128,
}

EXACT: list[tuple[str, dict[str, Any]]] = [
    ("cohere2", {}),
    ("exaone4", {}),
    ("gemma2", {}),
    ("gemma3_text", {}),
    ("glm4_moe", {}),
    ("gpt_oss", {}),
    ("granite", {"logits_scaling": 6.0}),
    ("hyperclovax", {"logits_scaling": 6.0}),
    ("mistral", {}),
    ("nemotron", {}),
    ("olmo3", {}),
    ("opt", {}),
    ("phi", {}),
    ("phi3", {"rope_parameters": _LONG, "sliding_window": 300}),
    ("stablelm", {}),
    ("starcoder2", {}),
]
REFUSED = [
    ("bloom", "BloomForCausalLM does not attend through transformers' attention interface"),
    ("deepseek_v3", "deepseek_v3 has multi-head latent attention"),
    ("deepseek_v32", "deepseek_v32 has sparse attention"),
    ("diffllama", "DiffLlamaForCausalLM attends more than once in a layer"),
    ("doge", "DogeAttention has a mask of its own"),
    ("falcon", "FalconForCausalLM does not attend through"),
    ("gemma4_text", "layers of Gemma4ForCausalLM have key-value heads of different shapes"),
    ("gpt_neo", "GPTNeoForCausalLM does not attend through"),
    ("gptj", "GPTJForCausalLM does not attend through"),
    ("mllama", "mllama is made of several models"),
    ("mpt", "MptForCausalLM does not attend through"),
    ("qwen3_next", "layers of type linear_attention keep a recurrent state"),
    ("t5gemma", "t5gemma is an encoder with a decoder"),
]


@pytest.mark.parametrize(("family", "changes"), EXACT, ids=[family for family, _ in EXACT])
def test_tokens_and_states_are_those_of_transformers(family: str, changes: dict[str, Any]) -> None:
    assert outcome(family, **changes) == Outcome(family, "exact")


@pytest.mark.parametrize(("family", "reason"), REFUSED, ids=[family for family, _ in REFUSED])
def test_others_are_refused_by_their_reason(family: str, reason: str) -> None:
    result = outcome(family)
    assert result.kind == "refused"
    assert result.sentence.startswith("target: ")
    assert reason in result.sentence
    assert "\n" not in result.sentence


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; between 1 and 1024 can be served"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000; between 1 and 1024 can"),
        ({"hidden_act": "zork"}, "hidden_act is 'zork', which transformers does not know"),
        (
            {"rope_parameters": {"rope_type": "zork", "rope_theta": 1e4}},
            "rope_type is 'zork', which transformers does not know",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 0}},
            "rope_theta is 0; it must be positive",
        ),
        ({"head_dim": 1}, "head_dim is 1; RoPE turns pairs of elements, so it must be even"),
        (
            {"num_key_value_heads": 3},
            "num_attention_heads is 4, no multiple of num_key_value_heads (3)",
        ),
    ],
)
def test_what_no_model_computes_is_refused_by_its_setting(
    changes: dict[str, Any], sentence: str
) -> None:
    assert why_not(LlamaConfig(num_attention_heads=4, num_key_value_heads=2)) is None
    config = LlamaConfig(**{"num_attention_heads": 4, "num_key_value_heads": 2, **changes})
    assert str(why_not(config)).startswith(sentence)


def test_positions_have_a_limit() -> None:
    """Tables are built of each of them before a sequence is seen."""
    assert positions_of(LlamaConfig(max_position_embeddings=10**9)) == 1 << 20
    assert positions_of(LlamaConfig(max_position_embeddings=1 << 20)) == 1 << 20
