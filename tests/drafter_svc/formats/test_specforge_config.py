"""A flat config.json: written in full, read strictly."""

import json
from typing import Any

import pytest

from drafter_svc.formats.declared import UserOverrides
from drafter_svc.formats.json_section import parse
from drafter_svc.formats.refused_keys import IGNORED, refusal
from drafter_svc.formats.specforge_config import write_flat
from drafter_svc.formats.speculators_config import write_nested
from drafter_svc.model.config import CheckpointError
from tests.support.foreign_checkpoints import GIVEN, flat, foreign, read
from tests.support.tiny_drafter import tiny_config


def test_round_trip() -> None:
    config = tiny_config(draft_temperature=0.65, training={"answer_tokens": 3, "note": ["a"]})
    assert read(json.loads(write_flat(config))) == config


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 3, "attention_bias": True},
        {"fc_norm": False, "norm_before_fc": True, "norm_before_residual": True},
        {"qk_norm": True, "sliding_window": 9, "num_hidden_layers": 2},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"mtp_head": True, "aux_layers": (4,)},
    ],
)
def test_round_trip_of_toggles(changes: dict[str, Any]) -> None:
    config = tiny_config(**changes)
    assert read(json.loads(write_flat(config))) == config


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


def test_an_mtp_head_is_not_written_as_what_others_read() -> None:
    config = tiny_config(mtp_head=True, aux_layers=(4,))
    assert json.loads(write_flat(config))["architectures"] == ["HoldcourseMtpHead"]
    with pytest.raises(CheckpointError, match="cannot hold an MTP head"):
        write_nested(config, "target")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"aux_layers": (1, 4)}, r"one captured state of its own width, got aux layers \[1, 4\]"),
        ({"hidden_size": 12, "own_embeddings": True}, "of width 16 for 12"),
        ({"norm_before_residual": True}, "norm_before_residual is true"),
        ({"norm_before_fc": True, "fc_norm": False}, "norm_before_fc is true"),
    ],
)
def test_switches_that_an_mtp_head_cannot_have(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        tiny_config(**({"mtp_head": True, "aux_layers": (4,)} | changes))


def test_keys_without_a_meaning_for_the_forward_are_accepted() -> None:
    assert read(flat(transformers_version="5.0", bos_token_id=1)) == tiny_config()


@pytest.mark.parametrize(
    "name",
    [
        "hidden_size",
        "intermediate_size",
        "vocab_size",
        "rms_norm_eps",
        "max_position_embeddings",
        "norm_before_residual",
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
        ({"architectures": ["GptOssForCausalLM"]}, "LlamaForCausalLMEagle3"),
        ({"use_aux_norm": False}, "fc_norm and use_aux_norm contradict"),
        ({"norm_before_fc": True}, "fc_norm and norm_before_fc are both true"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "rope_type is 'dynamic'"),
        ({"rope_scaling": {"type": "yarn"}}, "yarn has no factor"),
        ({"rope_scaling": {"type": "default", "factor": 2}}, "which takes no factor"),
        ({"rope_scaling": {"factor": 2}}, "has no rope_type but factor"),
        ({"rope_scaling": {"type": "yarn", "rope_type": "linear"}}, "contradict each other"),
        ({"rope_scaling": {"type": "default", "rope_theta": 7.0}}, "rope_theta and rope_scaling"),
        ({"rope_scaling": {"type": "linear", "factor": -1}}, "factor must be a positive"),
        ({"rope_scaling": {"type": "linear", "factor": 1, "beta_fast": 2}}, "beta_fast"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, "rope_theta and"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"parallel_drafting": True}, "parallel_drafting"),
        ({"model_type": "gpt_oss"}, "model_type is 'gpt_oss'"),
        ({"sliding_window": 4}, "add layer_types"),
        ({"layer_types": ["sliding_attention"]}, "no sliding_window"),
        ({"layer_types": ["full_attention"], "num_hidden_layers": 2}, "each of 2 layers"),
        ({"layer_types": ["chunked_attention"]}, "each of 1 layers"),
        ({"layer_types": ["sliding_attention"] * 2, "sliding_window": 4}, "names 2 layers"),
        (
            {"layer_types": ["sliding_attention", "full_attention"], "num_hidden_layers": 2},
            "mixes full and sliding",
        ),
        ({"num_aux_hidden_states": 2}, "num_aux_hidden_states is 2"),
        ({"eagle_aux_hidden_state_layer_ids": [1, 2, 4]}, "at the top and"),
        ({"quantization_config": {}}, "quantization_config: weights are quantized"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping: scores or logits are capped"),
        ({"kv_lora_rank": 512}, "kv_lora_rank: attention reads latent keys (MLA)"),
        ({"use_cla": True}, "use_cla is True"),
        ({"norm_type": "layer"}, "norm_type is 'layer'"),
        ({"something_new": 3}, "does not know: something_new"),
        ({"architectures": ["PEagleDraftModel"]}, "P-EAGLE, which drafts several tokens at once"),
        ({"architectures": ["EagleLlamaForCausalLM"]}, "an EAGLE-1 head"),
        ({"architectures": [["LlamaForCausalLM"]]}, "architectures is [['LlamaForCausalLM']]"),
        ({"attention_head_dim": 8}, "head_dim and attention_head_dim contradict each other"),
        ({"target_layer_ids": [1, 2, 3]}, "both name layers"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"hidden_size": "16"}, "hidden_size must be an integer"),
        ({"hidden_size": True}, "hidden_size must be an integer"),
        ({"fc_norm": 1}, "fc_norm must be true or false"),
        ({"rope_theta": "1e4"}, "rope_theta must be a number"),
        ({"rope_theta": 0}, "rope_theta must be positive"),
        ({"target_hidden_size": 32}, "embed_tokens.weight"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
        ({"head_dim": 5}, "head_dim 5"),
        ({"draft_vocab_size": 65}, "draft_vocab_size 65 exceeds vocab_size 64"),
        ({"intermediate_size": 0}, "intermediate_size must be at least 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1"),
        ({"draft_vocab_size": 0}, "draft_vocab_size must be at least 1"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be at most 256"),
        ({"intermediate_size": 1 << 40}, "intermediate_size must be at most 16777216"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps is not a finite number"),
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
        ({"use_mtp_layernorm": True}, "use_mtp_layernorm"),
        ({"norm_before_fc": True}, "norm_before_fc is False at the top and True"),
        ({"eagle_aux_hidden_state_layer_ids": [2, 1]}, "strictly ascending"),
        ({"eagle_aux_hidden_state_layer_ids": []}, "pass --aux-layers"),
        ({"next_layer_regular": False}, "next_layer_regular"),
        ({"parallel_draft_step": 2}, "parallel_draft_step is 2"),
        ({"eagle_aux_hidden_state_layer_ids": ["1"]}, "must hold integers"),
        ({"eagle_aux_hidden_state_layer_ids": 2}, "must be a list"),
        ({"sliding_window": 4}, "sliding_window"),
    ],
)
def test_wrong_capture_keys_are_named(changes: dict[str, Any], words: str) -> None:
    values = flat()
    del values["eagle_aux_hidden_state_layer_ids"]
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
        parse(text, "config.json")


def test_what_no_reader_disagrees_on_may_be_left_out() -> None:
    values = foreign()
    names = ["architectures", "head_dim", "target_hidden_size", "rope_theta", "num_hidden_layers"]
    for name in [*names, "norm_output", "num_key_value_heads", "fc_norm", "draft_vocab_size"]:
        del values[name]
    config = read(values, GIVEN)
    assert config.head_dim == 4
    assert config.num_key_value_heads == 4
    assert (config.target_hidden_size, config.draft_vocab_size) == (16, 64)
    assert (config.rope_theta, config.draft_temperature) == (10000.0, 1.0)
    assert not config.fc_norm
    assert not config.norm_output


def test_the_target_must_be_known() -> None:
    with pytest.raises(CheckpointError, match="--target"):
        read(foreign())
    assert read(foreign(), GIVEN).target_fingerprint == "feed"
    with pytest.raises(CheckpointError, match="fingerprint is feed and not beef"):
        read(flat(), UserOverrides(target_fingerprint="beef"))


def test_norm_before_residual_must_be_known() -> None:
    values = foreign()
    del values["norm_before_residual"]
    with pytest.raises(CheckpointError, match="--norm-before-residual"):
        read(values, GIVEN)
    given = UserOverrides(target_fingerprint="feed", norm_before_residual=True)
    assert read(values, given).norm_before_residual
    with pytest.raises(CheckpointError, match="is False and not True"):
        read(foreign(), given)


@pytest.mark.parametrize(
    ("written", "convention", "read_as"),
    [
        ([2, 5, 9], None, (2, 5, 9)),
        ([2, 5, 9], "output", (3, 6, 10)),
        ([1, 5, 9], "input", (1, 5, 9)),
        ([1, 5, 9], "output", (2, 6, 10)),
        ([4, 8, 12], "boundary", (4, 8, 12)),
    ],
)
def test_conventions(written: list[int], convention: str | None, read_as: tuple[int, ...]) -> None:
    values = foreign()
    values["eagle_config"]["eagle_aux_hidden_state_layer_ids"] = written
    given = UserOverrides(target_fingerprint="feed", aux_convention=convention)
    assert read(values, given).aux_layers == read_as


def test_ids_that_are_read_in_two_ways_are_refused() -> None:
    values = foreign()
    values["eagle_config"]["eagle_aux_hidden_state_layer_ids"] = [1, 5, 9]
    with pytest.raises(CheckpointError, match="--aux-convention"):
        read(values, GIVEN)


def test_ids_that_nobody_says_are_refused() -> None:
    values = foreign()
    del values["eagle_config"]
    with pytest.raises(CheckpointError, match="--aux-layers"):
        read(values, GIVEN)
    given = UserOverrides(target_fingerprint="feed", aux_layers=(1, 4, 7))
    assert read(values, given).aux_layers == (1, 4, 7)
    with pytest.raises(CheckpointError, match=r"aux layers is \[2, 5, 9\] and not \[1, 4, 7\]"):
        read(foreign(), given)


def test_our_own_files_leave_no_convention_open() -> None:
    assert read(flat()).aux_layers == (1, 2, 3)
    with pytest.raises(CheckpointError, match="leave out --aux-convention"):
        read(flat(), UserOverrides(aux_convention="output"))


def test_older_names_are_understood() -> None:
    values = foreign(use_aux_norm=True, rope_scaling={"type": "linear", "factor": 2})
    del values["fc_norm"]
    config = read(values, GIVEN)
    assert config.fc_norm
    assert config.rope_scaling == {"rope_type": "linear", "factor": 2}


@pytest.mark.parametrize("key", sorted(IGNORED))
def test_ignored_keys_have_a_reason_and_change_nothing(key: str) -> None:
    assert refusal(key) is None
    values = foreign()
    values.setdefault(key, "whatever")
    assert read(values, GIVEN) == read(foreign(), GIVEN)


def test_layers_may_be_named_by_their_outputs() -> None:
    values = foreign()
    del values["eagle_config"]
    assert read(values | {"target_layer_ids": [1, 4, 8]}, GIVEN).aux_layers == (2, 5, 9)


def test_modelopts_switches_are_known() -> None:
    values = foreign()
    values["eagle_config"] |= {
        "next_layer_regular": True,
        "parallel_draft_step": 1,
        "parallel_draft_heads_num_layers": 1,
        "use_input_layernorm_in_first_layer": True,
        "use_last_layernorm": True,
        "use_mtp_layernorm": None,
    }
    assert read(values, GIVEN) == read(foreign(), GIVEN)


def test_one_norm_of_all_states_may_stand_in_eagle_config() -> None:
    values = foreign(fc_norm=False)
    del values["norm_before_fc"]
    values["eagle_config"]["norm_before_fc"] = True
    assert read(values, GIVEN).norm_before_fc


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 5000, "config.json is nested too deeply"),
        ('{"a": ' * 5000, "config.json is nested too deeply"),
        ('{"hidden_size": ' + "1" * 5000 + "}", "config.json is not valid JSON"),
        ("{", "config.json is not valid JSON"),
        ("[]", "config.json must hold one JSON object"),
    ],
)
def test_what_is_no_object_is_refused(text: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=f"^{words}"):
        parse(text, "config.json")
