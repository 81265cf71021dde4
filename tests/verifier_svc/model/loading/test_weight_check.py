"""A target is what its files hold: what they lack is not made up, and nothing is left unread."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.families.tiny import tiny_config, write_tiny
from tests.families.walk import load
from tests.support.tiny_llama import write_tiny_llama
from verifier_svc.model.loading.loader import TargetError

LAYER = "model.layers.1."
UP = f"{LAYER}mlp.up_proj.weight"
Change = Callable[[dict[str, Tensor]], Any]


def changed(folder: Path, change: Change, **settings: Any) -> Path:
    """Another content of a folder's weights, and of its configuration."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **settings}))
    return folder


def same(tensors: dict[str, Tensor]) -> None:
    assert UP in tensors


def as_integers(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        tensors[name] = (tensor * 100).to(torch.int8)


@pytest.mark.parametrize(
    ("change", "settings", "sentence"),
    [
        (lambda t: t.pop(UP), {}, f"the weights have no {UP}."),
        (
            same,
            {"num_hidden_layers": 5},
            "the weights have no model.layers.4.input_layernorm.weight and 8 more.",
        ),
        (lambda t: t.pop("lm_head.weight"), {}, "the weights have no lm_head.weight."),
        (
            lambda t: t.update({f"{LAYER}self_attn.q_proj.bias": torch.ones(32)}),
            {},
            f"the weights have {LAYER}self_attn.q_proj.bias, which llama does not read.",
        ),
        (
            lambda t: t.update({f"{LAYER}mlp.up_proj.weight_scale": torch.ones(1)}),
            {},
            f"the weights have {LAYER}mlp.up_proj.weight_scale, which llama does not read.",
        ),
        (
            lambda t: t.update({"model.norm.bias": torch.ones(32)}),
            {},
            "the weights have model.norm.bias, which llama does not read.",
        ),
        (
            same,
            {"num_hidden_layers": 3},
            "have model.layers.3.input_layernorm.weight and 8 more, which llama does not read.",
        ),
        (
            lambda t: t.update({UP: torch.zeros(60, 32)}),
            {},
            f"the weights have {UP} of shape [60, 32], its configuration says [64, 32].",
        ),
        (as_integers, {}, "as integers, and nothing says what they stand for."),
    ],
    ids=["weight", "layer", "head", "bias", "scale", "norm", "further", "shape", "integers"],
)
def test_other_weights_are_refused_by_name(
    change: Change, settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    folder = changed(write_tiny_llama(tmp_path), change, **settings)
    with pytest.raises(TargetError, match=re.escape(sentence) + "$") as error:
        load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", {}),
        ("model.layers.0.self_attn.masked_bias", {}),
        ("model.vision_tower.blocks.0.mlp.weight", {}),
        ("visual.patch_embed.proj.weight", {}),
        ("mtp.layers.0.mlp.up_proj.weight", {}),
        ("model.layers.4.eh_proj.weight", {"num_nextn_predict_layers": 1}),
        ("score.weight", {}),
    ],
)
def test_what_a_decoder_does_without_changes_nothing(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    folder = write_tiny_llama(tmp_path)
    plain = load(folder).fingerprint
    changed(folder, lambda t: t.update({name: torch.ones(4)}), **settings)
    assert load(folder).fingerprint == plain


def test_experts_that_are_missing_are_refused(tmp_path: Path) -> None:
    folder = write_tiny(tiny_config("mixtral"), tmp_path)
    name = "model.layers.0.block_sparse_moe.experts.3.w1.weight"
    changed(folder, lambda t: t.pop(name))
    with pytest.raises(TargetError, match=r"experts\.gate_up_proj cannot be put together") as error:
        load(folder)
    assert "\n" not in str(error.value)
