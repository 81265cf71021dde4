"""A saved drafter comes back, and every damaged one is refused with a sentence that names why."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from drafter_svc.formats.checkpoint import load_checkpoint, save_checkpoint
from drafter_svc.model.config import CheckpointError
from tests.support.tiny_drafter import tiny_config, tiny_drafter

IDS = torch.arange(40) + torch.arange(40) // 2  # 0, 1, 3, 4, 6, ... 58: not contiguous
WEIGHTS, CONFIG = "model.safetensors", "config.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path, tiny_drafter(tiny_config(draft_temperature=0.7)), IDS)
    return tmp_path


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    change(tensors)
    safetensors.torch.save_file(tensors, folder / WEIGHTS)


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder, dtype=torch.float32)
    return str(caught.value)


def test_round_trip(folder: Path) -> None:
    original = tiny_drafter(tiny_config())
    loaded = load_checkpoint(folder, dtype=torch.float32)
    assert loaded.config == tiny_config(draft_temperature=0.7)
    assert torch.equal(loaded.target_ids, IDS)
    assert not loaded.module.training
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())
    for name, tensor in original.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], tensor.bfloat16().float()), name


def test_the_file_has_the_specforge_layout(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    assert shapes == {
        "fc.weight": [16, 48],
        **{f"fc_norm.{index}.weight": [16] for index in range(3)},
        "midlayer.input_layernorm.weight": [16],
        "midlayer.hidden_norm.weight": [16],
        "midlayer.post_attention_layernorm.weight": [16],
        "midlayer.self_attn.q_proj.weight": [24, 32],
        "midlayer.self_attn.k_proj.weight": [12, 32],
        "midlayer.self_attn.v_proj.weight": [12, 32],
        "midlayer.self_attn.o_proj.weight": [16, 24],
        "midlayer.mlp.gate_proj.weight": [24, 16],
        "midlayer.mlp.up_proj.weight": [24, 16],
        "midlayer.mlp.down_proj.weight": [16, 24],
        "norm.weight": [16],
        "lm_head.weight": [40, 16],
        "d2t": [40],
        "t2d": [64],
    }
    assert tensors["d2t"].dtype == torch.int64
    assert torch.equal(torch.arange(40) + tensors["d2t"], IDS)
    assert tensors["t2d"].nonzero().flatten().tolist() == IDS.tolist()
    assert tensors["lm_head.weight"].dtype == torch.bfloat16


def test_t2d_says_nothing_new(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop("t2d"))
    assert torch.equal(load_checkpoint(folder, dtype=torch.float32).target_ids, IDS)


def test_a_vocabulary_that_was_never_filled_in_is_refused(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: (tensors.pop("t2d"), tensors["d2t"].zero_()))
    assert "d2t is all zero" in refusal(folder)


def test_hash_names_the_content(folder: Path, tmp_path: Path) -> None:
    first = load_checkpoint(folder, dtype=torch.float32).checkpoint_hash
    assert first == load_checkpoint(folder, dtype=torch.bfloat16).checkpoint_hash
    edit_tensors(folder, lambda tensors: tensors["norm.weight"].add_(1))
    second = load_checkpoint(folder, dtype=torch.float32).checkpoint_hash
    save_checkpoint(folder, tiny_drafter(tiny_config(draft_temperature=0.8)), IDS)
    third = load_checkpoint(folder, dtype=torch.float32).checkpoint_hash
    assert len({first, second, third}) == 3
    assert len(first) == 64


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: (t.pop("d2t"), t.pop("t2d")), ["no tensor d2t"]),
        (lambda t: (t.pop("d2t"), t["t2d"][2:3].fill_(True)), ["t2d marks 41", "expected 40"]),
        (lambda t: t.pop("fc_norm.1.weight"), ["no tensor fc_norm.1.weight"]),
        (lambda t: t.update({"input_norm.weight": torch.ones(48)}), ["input_norm.weight"]),
        (lambda t: t.update({"fc.weight": torch.ones(16, 32)}), ["fc.weight", "[16, 32]", "48]"]),
        (lambda t: t.update({"d2t": torch.zeros(39, dtype=torch.int64)}), ["d2t", "[39]", "[40]"]),
        (lambda t: t.update({"d2t": t["d2t"].bfloat16()}), ["d2t is bfloat16", "integers"]),
        (lambda t: t.update({"t2d": t["t2d"].half()}), ["t2d is float16", "integers"]),
        (lambda t: t.update({"t2d": t["t2d"].int() * 2}), ["t2d must hold 0 and 1"]),
        (lambda t: t["d2t"][-1:].add_(30), ["id 88", "[0, 64)"]),
        (lambda t: t["d2t"][:1].sub_(1), ["id -1", "[0, 64)"]),
        (lambda t: t["d2t"][1:2].sub_(1), ["two draft tokens to target id 0"]),
        (lambda t: t["t2d"][2:3].fill_(True), ["d2t and t2d"]),
        (lambda t: t["norm.weight"][3:4].fill_(torch.nan), ["norm.weight", "finite"]),
        (lambda t: t["lm_head.weight"][0].fill_(torch.inf), ["lm_head.weight", "finite"]),
        (lambda t: t.update({"norm.weight": torch.ones(16, dtype=torch.int8)}), ["norm.weight"]),
        (
            lambda t: t.update({"fc.weight": t["fc.weight"].to(torch.float8_e4m3fn)}),
            ["fc.weight is float8_e4m3fn", "16, 32 or 64 bits"],
        ),
    ],
)  # fmt: skip
def test_damaged_tensors_are_refused(
    folder: Path, change: Callable[[dict[str, Tensor]], object], words: list[str]
) -> None:
    edit_tensors(folder, change)
    sentence = refusal(folder)
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize("keep", [0, 5, 500])
def test_truncated_weights_are_refused(folder: Path, keep: int) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:keep])
    assert "damaged or cut short" in refusal(folder)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_missing_files_are_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert name in refusal(folder)


def test_config_that_is_not_text_is_refused(folder: Path) -> None:
    (folder / CONFIG).write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in refusal(folder)


def test_weights_of_other_switches_are_refused(folder: Path) -> None:
    edit_config(folder, fc_norm=False)
    assert "fc_norm.0.weight" in refusal(folder)


def test_weights_of_another_width_are_refused(folder: Path) -> None:
    edit_config(folder, intermediate_size=32)
    sentence = refusal(folder)
    assert "midlayer.mlp.gate_proj.weight" in sentence
    assert "[24, 16]" in sentence
    assert "[32, 16]" in sentence


def test_saving_refuses_what_loading_would(tmp_path: Path) -> None:
    drafter = tiny_drafter(tiny_config())
    with pytest.raises(CheckpointError, match="ascending"):
        save_checkpoint(tmp_path, drafter, IDS.flip(0))
    with pytest.raises(CheckpointError, match="39 ids, expected 40"):
        save_checkpoint(tmp_path, drafter, IDS[:39])
    torch.nn.init.constant_(drafter.norm.weight, torch.nan)
    with pytest.raises(CheckpointError, match=r"norm\.weight"):
        save_checkpoint(tmp_path, drafter, IDS)
    assert not list(tmp_path.iterdir())
