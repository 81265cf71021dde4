"""config.json: written in full, read strictly."""

import json
from typing import Any

import pytest

from drafter_svc.config import CheckpointError, DrafterConfig
from tests.drafter_svc.tiny import tiny_config


def flat(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(tiny_config().to_json())
    return values | changes


def read(values: dict[str, Any]) -> DrafterConfig:
    return DrafterConfig.from_json(json.dumps(values))


def test_round_trip() -> None:
    config = tiny_config(draft_temperature=0.65, training={"answer_tokens": 3, "note": ["a"]})
    assert DrafterConfig.from_json(config.to_json()) == config


def test_keys_that_other_readers_need_are_written() -> None:
    written = flat()
    assert written["architectures"] == ["LlamaForCausalLMEagle3"]
    assert written["norm_before_residual"] is False
    assert written["fc_norm"] is True
    assert written["norm_output"] is True
    assert written["eagle_config"] == {
        "use_aux_hidden_state": True,
        "eagle_aux_hidden_state_layer_ids": [1, 2, 3],
    }


def test_keys_without_a_meaning_for_the_forward_are_accepted() -> None:
    assert read(flat(transformers_version="5.0", bos_token_id=1)) == tiny_config()


@pytest.mark.parametrize(
    "name",
    [
        "architectures",
        "hidden_size",
        "draft_vocab_size",
        "rms_norm_eps",
        "fc_norm",
        "norm_output",
        "norm_before_residual",
        "eagle_config",
        "holdcourse",
    ],
)
def test_missing_keys_are_named(name: str) -> None:
    values = flat()
    del values[name]
    with pytest.raises(CheckpointError, match=f"no {name}"):
        read(values)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLMEagle3"),
        ({"use_aux_norm": True}, "use_aux_norm"),
        ({"norm_before_fc": True}, "norm_before_fc"),
        ({"num_hidden_layers": 2}, "num_hidden_layers is 2"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"hidden_size": "16"}, "hidden_size must be an integer"),
        ({"hidden_size": True}, "hidden_size must be an integer"),
        ({"fc_norm": 1}, "fc_norm must be true or false"),
        ({"rope_theta": "1e4"}, "rope_theta must be a number"),
        ({"rope_theta": 0}, "rope_theta must be positive"),
        ({"target_hidden_size": 32}, "target_hidden_size is 32"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
        ({"head_dim": 5}, "head_dim 5"),
        ({"draft_vocab_size": 65}, "draft_vocab_size 65 exceeds vocab_size 64"),
        ({"intermediate_size": 0}, "intermediate_size must be at least 1"),
        ({"eagle_config": []}, "eagle_config must be an object"),
        ({"holdcourse": {"target_fingerprint": "f"}}, "holdcourse has no draft_temperature"),
    ],
)
def test_wrong_keys_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(flat(**changes))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_aux_hidden_state": False}, "use_aux_hidden_state"),
        ({"eagle_aux_hidden_state_layer_ids": [2, 1]}, "strictly ascending"),
        ({"eagle_aux_hidden_state_layer_ids": []}, "strictly ascending"),
        ({"eagle_aux_hidden_state_layer_ids": ["1"]}, "must hold integers"),
        ({"eagle_aux_hidden_state_layer_ids": 2}, "must be a list"),
        ({"sliding_window": 4}, "sliding_window"),
    ],
)
def test_wrong_capture_keys_are_named(changes: dict[str, Any], words: str) -> None:
    values = flat()
    values["eagle_config"] |= changes
    with pytest.raises(CheckpointError) as caught:
        read(values)
    assert words in str(caught.value)


@pytest.mark.parametrize("temperature", [0, -1, float("nan")])
def test_impossible_draft_temperatures_are_refused(temperature: float) -> None:
    values = flat()
    values["holdcourse"]["draft_temperature"] = temperature
    with pytest.raises(CheckpointError, match="draft_temperature"):
        read(values)


@pytest.mark.parametrize("text", ["", "{", "[]", '"config"'])
def test_what_is_not_an_object_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        DrafterConfig.from_json(text)
