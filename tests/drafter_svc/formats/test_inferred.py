"""Weights decide what a config that was copied from the target says wrongly, or not at all."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import LlamaConfig, MistralConfig, Phi3Config, Qwen2Config, Qwen3Config

from drafter_svc.formats.checkpoint import load_checkpoint
from drafter_svc.formats.writer import write_specforge, write_speculators
from drafter_svc.model.config import CheckpointError
from tests.support.foreign_checkpoints import (
    GIVEN,
    Tensors,
    check_same,
    put,
    refusal,
    renamed,
    written,
)

Values = dict[str, Any]


@pytest.mark.parametrize(
    "copied",
    [
        {"num_hidden_layers": 36},
        {"num_hidden_layers": 36, "layer_types": ["full_attention"] * 36},
        {"model_type": "qwen3"},
        {"model_type": "mistral"},
        {"model_type": "phi3", "embd_pdrop": 0.0, "resid_pdrop": 0.0},
        {"tie_word_embeddings": True},
        {"architectures": ["Eagle3Qwen2_5vlForCausalLM"]},
        {"architectures": ["Eagle3Qwen3vlForCausalLM"]},
    ],
)
def test_what_was_copied_from_the_target_is_told_by_the_weights(
    copied: Values, tmp_path: Path
) -> None:
    tensors, values = written(tmp_path)
    check_same(put(tmp_path / "theirs", tensors, values | copied), tmp_path / "original")


def test_the_layers_that_count_are_said(tmp_path: Path) -> None:
    tensors, values = written(tmp_path, num_hidden_layers=2)
    folder = put(tmp_path / "theirs", tensors, values | {"num_hidden_layers": 40})
    loaded = load_checkpoint(folder, dtype=torch.float32, given=GIVEN)
    assert loaded.config.num_hidden_layers == 2
    (note,) = loaded.notes
    assert "num_hidden_layers 40" in note
    window = {"layer_types": ["sliding_attention"] * 40, "sliding_window": 9}
    put(folder, tensors, values | window | {"num_hidden_layers": 40})
    assert "40 layers with a window, the weights have 2" in refusal(folder)


def test_norms_of_queries_and_keys_come_in_pairs(tmp_path: Path) -> None:
    tensors, values = written(tmp_path, qk_norm=True)
    values |= {"architectures": ["Eagle3Qwen3ForCausalLM"], "model_type": "llama"}
    folder = put(tmp_path / "theirs", tensors, values)
    check_same(folder, tmp_path / "original")
    del tensors["midlayer.self_attn.k_norm.weight"]
    assert "no tensor midlayer.self_attn.k_norm.weight" in refusal(put(folder, tensors, values))


def test_a_format_of_its_own_making_is_taken_at_its_word(tmp_path: Path) -> None:
    """A lost tensor of ours is not taken for a copied key."""
    written(tmp_path, num_hidden_layers=2, qk_norm=True)
    original = tmp_path / "original"
    tensors = safetensors.torch.load_file(original / "model.safetensors")
    for lost in (".self_attn.", "layers.1."):
        kept = {n: t for n, t in tensors.items() if lost not in n or "_norm" not in n}
        safetensors.torch.save_file(kept, original / "model.safetensors")
        assert "no tensor" in refusal(original)


@pytest.mark.parametrize("prefix", ["draft_model.", "module.", "eagle_module.", "module.model."])
def test_prefixes_of_wrapping_modules_are_taken_away(prefix: str, tmp_path: Path) -> None:
    tensors, values = written(tmp_path)
    tensors = renamed(tensors, lambda name: prefix + name)
    check_same(put(tmp_path / "theirs", tensors, values), tmp_path / "original")


def test_other_prefixes_are_named(tmp_path: Path) -> None:
    tensors, values = written(tmp_path)
    tensors = renamed(tensors, lambda name: "speculator." + name)
    assert "tensors begin with speculator., which" in refusal(put(tmp_path / "t", tensors, values))


def test_modelopt_numbers_layers_within_the_first_ones_name(tmp_path: Path) -> None:
    tensors, values = written(tmp_path, num_hidden_layers=2)

    def rename(name: str) -> str:
        return name.replace("midlayer.", "midlayer.0.").replace("layers.1.", "midlayer.1.")

    folder = put(tmp_path / "theirs", renamed(tensors, rename), values)
    check_same(folder, tmp_path / "original")


def without_hidden_norm(tensors: Tensors) -> None:
    del tensors["midlayer.hidden_norm.weight"], tensors["midlayer.input_layernorm.weight"]
    tensors["fc.weight"] = torch.ones(16, 32)


@pytest.mark.parametrize(
    ("change", "changed", "words"),
    [
        (without_hidden_norm, {}, "an EAGLE-1 head"),
        (
            lambda t: t.update({"midlayer.self_attn.kv_a_proj.weight": torch.ones(2, 2)}),
            {},
            "latent keys",
        ),
        (lambda t: t.update({"midlayer.mlp.experts.0.weight": torch.ones(2)}), {}, "experts"),
        (lambda t: None, {"head_dim": None}, "expected [16, 32]: set head_dim: 6 if"),
        (lambda t: None, {"target_hidden_size": 24}, "set target_hidden_size: 16 or"),
        (
            lambda t: t.update({"fc.weight": torch.ones(16, 64)}),
            {},
            "name 4 aux layers in place of 3",
        ),
        (
            lambda t: (t.update({"lm_head.weight": torch.ones(30, 16)}), t.pop("d2t")),
            {"draft_vocab_size": 40},
            "set draft_vocab_size: 30",
        ),
    ],
)
def test_what_the_weights_show_otherwise_is_named(
    change: Callable[[Tensors], object], changed: Values, words: str, tmp_path: Path
) -> None:
    own = {"own_embeddings": True} if "target_hidden_size" in changed else {}
    tensors, values = written(tmp_path, fc_norm=False, **own)
    change(tensors)
    assert words in refusal(put(tmp_path / "theirs", tensors, values | changed))


def test_a_head_may_be_left_to_the_target(tmp_path: Path) -> None:
    tensors, values = written(tmp_path, draft_vocab_size=64)
    head = tensors.pop("lm_head.weight").float()
    folder = put(tmp_path / "theirs", tensors, values)
    loaded = load_checkpoint(folder, dtype=torch.float32, given=GIVEN)
    assert not loaded.config.own_head
    assert not any(name.startswith("lm_head") for name in loaded.module.state_dict())
    loaded.module.borrow_head(head)
    original = load_checkpoint(tmp_path / "original", dtype=torch.float32)
    assert loaded.config == replace(original.config, own_head=False)
    hidden = torch.randn(5, 16)
    assert torch.equal(loaded.module.logits(hidden), original.module.logits(hidden))
    # What it borrows is not written, so that it comes back as it was.
    write_specforge(tmp_path / "again", loaded.module, loaded.target_ids)
    again = load_checkpoint(tmp_path / "again", dtype=torch.float32)
    assert again.config == loaded.config
    with pytest.raises(CheckpointError, match="borrows its target's head"):
        write_speculators(tmp_path / "nested", loaded.module, loaded.target_ids, "some/target")


def test_no_other_head_stands_for_one_of_chosen_tokens(tmp_path: Path) -> None:
    tensors, values = written(tmp_path)
    del tensors["lm_head.weight"]
    assert "draft tokens are 40 of 64" in refusal(put(tmp_path / "theirs", tensors, values))
    narrow = {"own_embeddings": True, "target_hidden_size": 24, "draft_vocab_size": 64}
    tensors, values = written(tmp_path, **narrow)
    del tensors["lm_head.weight"]
    assert "as wide as the target" in refusal(put(tmp_path / "theirs", tensors, values))


def test_speculators_first_files(tmp_path: Path) -> None:
    written(tmp_path, norm_before_residual=True)
    ours = load_checkpoint(tmp_path / "original", dtype=torch.float32)
    folder = tmp_path / "theirs"
    write_speculators(folder, ours.module, ours.target_ids, "some/target")
    values = json.loads((folder / "config.json").read_text())
    values |= {"has_no_defaults_at_init": False, "inference_type": "text"}
    values["speculators_version"] = "0.1.0"
    (folder / "config.json").write_text(json.dumps(values))
    check_same(folder, tmp_path / "original")


def test_shards_of_torch_files(tmp_path: Path) -> None:
    tensors, values = written(tmp_path)
    folder = put(tmp_path / "theirs", tensors, values)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {f"pytorch_model-{part}.bin": names[part::2] for part in (0, 1)}
    for file, chosen in parts.items():
        torch.save({name: tensors[name] for name in chosen}, folder / file)
    index = {"weight_map": {name: file for file, chosen in parts.items() for name in chosen}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    check_same(folder, tmp_path / "original")
    (folder / "pytorch_model.bin.index.json").unlink()
    assert "has config.json, pytorch_model-0.bin" in refusal(folder)


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen2Config, Qwen3Config, Phi3Config, MistralConfig])
def test_a_whole_config_of_the_target_is_read(kind: Any, tmp_path: Path) -> None:
    """NeMo Automodel starts from it, whatever the target, and trains one layer of Llama's."""
    tensors, values = written(tmp_path, head_dim=4)
    shapes = {
        name: values[name]
        for name in (
            "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
            "max_position_embeddings", "vocab_size", "rms_norm_eps",
        )
    }  # fmt: skip
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "sliding_window": None}
    target = kind(num_hidden_layers=36, head_dim=4, tie_word_embeddings=False, **shapes, **ends)
    added = ("draft_vocab_size", "target_hidden_size", "fc_norm", "norm_output")
    for diff in (True, False):
        config = json.loads(target.to_json_string(use_diff=diff))
        config |= {name: values[name] for name in added}
        config |= {"architectures": ["LlamaEagle3DraftModel"], "parallel_drafting": False}
        folder = put(tmp_path / "theirs", tensors, config)
        given = replace(GIVEN, aux_layers=(2, 3, 5), norm_before_residual=False)
        check_same(folder, tmp_path / "original", given)
