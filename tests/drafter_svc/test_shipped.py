"""The drafter that comes with the project."""

from pathlib import Path

import pytest
import torch

from drafter_svc.checkpoint import load_checkpoint

FOLDER = Path(__file__).parents[2] / "drafter_svc" / "checkpoints" / "smollm2-135m-instruct"


def test_it_loads_as_an_eagle_3_1_drafter_of_its_target() -> None:
    loaded = load_checkpoint(FOLDER, dtype=torch.bfloat16)
    assert loaded.config.norm_output
    assert loaded.config.fc_norm
    assert loaded.config.aux_layers == (2, 15, 27)
    assert loaded.config.vocab_size == 49152
    assert len(loaded.config.target_fingerprint) == 64
    assert 2 in loaded.target_ids.tolist()  # the end of every answer


def test_its_numbers_were_measured() -> None:
    held_out = load_checkpoint(FOLDER, dtype=torch.bfloat16).config.training["held_out"]
    top1 = held_out["top1_per_step"]
    assert held_out["positions"] > 500
    assert top1[0] == pytest.approx(max(top1))
    assert all(0 < share < 1 for share in top1)


def test_it_is_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 25_000_000
