"""The drafter that comes with the project."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from drafter_svc.formats.checkpoint import load_checkpoint, save_checkpoint
from drafter_svc.model.config import DrafterConfig

FOLDER = Path(__file__).parents[2] / "drafter_svc" / "checkpoints" / "smollm2-135m-instruct"


def test_it_loads_as_an_eagle_3_1_drafter_of_its_target() -> None:
    loaded = load_checkpoint(FOLDER, dtype=torch.bfloat16)
    # Each field, defaults included: what a new switch means without being said is checked here.
    assert replace(loaded.config, training={}, draft_temperature=1.0) == DrafterConfig(
        hidden_size=576, target_hidden_size=576, intermediate_size=1536,
        num_attention_heads=9, num_key_value_heads=3, head_dim=64,
        max_position_embeddings=8192, vocab_size=49152, draft_vocab_size=8192,
        rms_norm_eps=9.999999747378752e-06, rope_theta=100000.0,
        fc_norm=True, norm_output=True, norm_before_residual=False, aux_layers=(2, 15, 27),
        target_fingerprint="b88d95fff943f217ea62d2573304f470e3095da5923049784ecc3a8e75348fb2",
        num_hidden_layers=1, norm_before_fc=False, qk_norm=False, attention_bias=False,
        sliding_window=None, rope_scaling=None, own_embeddings=False,
        own_head=True, mtp_head=False,
    )  # fmt: skip
    assert 2 in loaded.target_ids.tolist()  # the end of every answer


def test_it_is_written_again_as_it_was_read(tmp_path: Path) -> None:
    loaded = load_checkpoint(FOLDER, dtype=torch.bfloat16)
    save_checkpoint(tmp_path, loaded.module, loaded.target_ids)
    again = load_checkpoint(tmp_path, dtype=torch.bfloat16)
    assert again.config == loaded.config
    weights = again.module.state_dict()
    for name, tensor in loaded.module.state_dict().items():
        assert torch.equal(weights[name], tensor), name


def test_its_numbers_were_measured() -> None:
    held_out = load_checkpoint(FOLDER, dtype=torch.bfloat16).config.training["held_out"]
    top1 = held_out["top1_per_step"]
    assert held_out["positions"] > 500
    assert top1[0] == pytest.approx(max(top1))
    assert all(0 < share < 1 for share in top1)


def test_it_is_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 25_000_000
