"""What a drafter starts from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from drafter_svc.formats.checkpoint import save_checkpoint
from drafter_svc.model.eagle import EagleDrafter
from drafter_svc.train.run.init_weights import (
    default_aux_layers,
    drafter_config,
    initial_drafter,
    require_fit,
    trained_drafter,
)
from drafter_svc.train.target.target import load_target


def test_aux_layers_are_inputs_of_low_middle_and_high_layers() -> None:
    assert default_aux_layers(30) == (2, 15, 27)
    assert default_aux_layers(32) == (2, 16, 29)


@pytest.mark.parametrize("layers", range(4, 80))
def test_aux_layers_are_distinct_and_never_the_final_state(layers: int) -> None:
    low, middle, high = default_aux_layers(layers)
    assert 0 < low < middle < high < layers


def test_a_target_that_is_too_shallow_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        default_aux_layers(3)


@pytest.mark.parametrize(
    "arms", [{}, {"num_hidden_layers": 3}, {"mtp_head": True, "aux_layers": (4,)}], ids=str
)
def test_an_untrained_drafter_reads_the_highest_state_with_the_targets_head(
    tiny_llama: Path, arms: dict[str, Any]
) -> None:
    target = load_target(str(tiny_llama))
    draft_ids = torch.arange(50) * 2 - torch.arange(50) // 10
    config = drafter_config(target, 50, arms)
    drafter = initial_drafter(config, target, draft_ids, 0)
    features = torch.randn(5, 32 * len(config.aux_layers))
    with torch.no_grad():
        hidden = drafter.layer(
            torch.randn(5, 32),
            drafter.fuse(features),
            torch.arange(5),
            lambda q, k, v: q.flatten(1),
        )
        high = torch.nn.functional.rms_norm(features[:, -32:], (32,), eps=1e-6)
        final = torch.nn.functional.rms_norm(high, (32,), target.final_norm.float(), 1e-6)
        expected = final @ target.head[draft_ids].float().T
    torch.testing.assert_close(drafter.logits(hidden), expected, rtol=1e-3, atol=1e-3)


def test_initial_weights_depend_on_the_seed_only(tiny_llama: Path) -> None:
    target, draft_ids = load_target(str(tiny_llama)), torch.arange(50)
    config = drafter_config(target, 50)
    one, same, other = (initial_drafter(config, target, draft_ids, s) for s in (0, 0, 1))
    weights = [drafter.midlayer.self_attn.q_proj.weight for drafter in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"target_fingerprint": "beef"}, "made for another target"),
        ({"vocab_size": 96}, "vocabulary of 96"),
        ({"own_embeddings": True, "target_hidden_size": 16}, "target_hidden_size 16, the target"),
        ({"aux_layers": (1, 5)}, "aux_layers has 5, the target has states 0 to 4"),
    ],
)
def test_a_drafter_of_another_target_is_refused(
    tiny_llama: Path, change: dict[str, Any], reason: str
) -> None:
    target = load_target(str(tiny_llama))
    config = drafter_config(target, 90)
    require_fit(config, target, "folder")
    with pytest.raises(ValueError, match=reason):
        require_fit(replace(config, **change), target, "folder")


def test_embeddings_of_the_drafters_own_are_not_trained(tiny_llama: Path, tmp_path: Path) -> None:
    target, draft_ids = load_target(str(tiny_llama)), torch.arange(50)
    config = replace(drafter_config(target, 50), own_embeddings=True, num_hidden_layers=2)
    save_checkpoint(tmp_path, initial_drafter(config, target, draft_ids, 0), draft_ids)
    drafter, _ = trained_drafter(str(tmp_path), target)
    frozen = [name for name, weight in drafter.named_parameters() if not weight.requires_grad]
    assert frozen == ["embed_tokens.weight"]


def test_a_head_that_is_the_targets_is_not_trained(tiny_llama: Path, tmp_path: Path) -> None:
    target, draft_ids = load_target(str(tiny_llama)), torch.arange(97)
    config = replace(drafter_config(target, 97), own_head=False)
    with_head = initial_drafter(replace(config, own_head=True), target, draft_ids, 0)
    drafter = EagleDrafter(config)
    drafter.load_state_dict(with_head.state_dict(), strict=False)
    save_checkpoint(tmp_path, drafter, draft_ids)
    read, _ = trained_drafter(str(tmp_path), target)
    assert torch.equal(read.lm_head.weight, target.head.float())
    frozen = [name for name, weight in read.named_parameters() if not weight.requires_grad]
    assert frozen == ["lm_head.weight"]
