"""Published draft configurations load, or are refused for what they compute."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from drafter_svc.formats.checkpoint import load_checkpoint
from drafter_svc.formats.declared import UserOverrides
from drafter_svc.model.config import CheckpointError, DrafterConfig
from tests.support.published_configs import PUBLISHED, Published
from tests.support.tiny_drafter import tiny_config, tiny_drafter

IDS = torch.arange(40) + torch.arange(40) // 2


def shapes() -> Iterator[tuple[str, Published]]:
    for published in PUBLISHED:
        trainer = "AngelSlim" if published.embeddings else "SpecForge"
        for name in published.names.split():
            yield name if "/" in name else f"{trainer}/{name}", published


def meant(published: Published) -> DrafterConfig:
    plain = {"head_dim": 4, "fc_norm": False, "norm_output": False, "aux_layers": (2, 3, 5)}
    return tiny_config(**(plain | published.means))


def weights(config: DrafterConfig) -> dict[str, Tensor]:
    """As the trainers of these files save them: bare names, whole buffers."""
    tensors = dict(tiny_drafter(config).state_dict())
    full = config.draft_vocab_size == config.vocab_size
    ids = torch.arange(40) if full else IDS
    t2d = torch.zeros(config.vocab_size, dtype=torch.bool)
    t2d[ids] = True
    return tensors | {"d2t": ids - torch.arange(40), "t2d": t2d}


def test_all_are_here() -> None:
    assert len(dict(shapes())) == 53
    assert sum(published.refused is not None for _, published in shapes()) == 2


@pytest.mark.parametrize(("name", "published"), [pytest.param(*s, id=s[0]) for s in shapes()])
def test_it_loads_or_is_refused_by_name(name: str, published: Published, tmp_path: Path) -> None:
    tensors = weights(meant(published))
    (tmp_path / "config.json").write_text(json.dumps(published.config))
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    named = "eagle_config" in published.says
    given = UserOverrides(
        None if named else (2, 3, 5),
        "output" if named else None,
        norm_before_residual=False,
        target_fingerprint="feed",
    )
    if published.refused is not None:
        with pytest.raises(CheckpointError, match=published.refused):
            load_checkpoint(tmp_path, dtype=torch.float32, given=given)
        return
    loaded = load_checkpoint(tmp_path, dtype=torch.float32, given=given)
    assert loaded.config == meant(published)
    read = loaded.module.state_dict()
    assert read.keys() == tensors.keys() - {"d2t", "t2d"}
    assert all(torch.equal(read[name], tensors[name]) for name in read)
    assert torch.equal(loaded.d2t, tensors["d2t"])
