"""Other values of a config are told from the declared ones by what the second chain step drafts."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drafter_svc.formats.checkpoint import LoadedDrafter
from drafter_svc.model.eagle import EagleDrafter
from drafter_svc.train.evaluation.config_variants import (
    DECLARED,
    Variant,
    compare_variants,
    variants_of,
)
from drafter_svc.train.evaluation.layer_probe import LayerProbe, Row, undecided, verdict
from tests.support.drafter_fixtures import causal
from tests.support.tiny_drafter import tiny_config, tiny_drafter

IDS = torch.arange(40) + torch.arange(40) // 2
LENGTH, PROMPT, VOCAB = 100, 7, 64
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
TARGET = SimpleNamespace(rope_parameters={"rope_type": "default", "rope_theta": 50.0})


def two_steps(drafter: EagleDrafter, table: nn.Embedding, ids: Tensor, features: Tensor) -> Tensor:
    """Logits over the target's vocabulary: row i + 2 is what the chain of column i drafts second.

    Each chain is computed anew from all of its rows.
    """
    rows = torch.full((len(ids), VOCAB), -30.0)
    attend = partial(causal, drafter.config.sliding_window)
    fused = drafter.fuse(features)
    for column in range(len(ids) - 3):
        stop = column + 1
        hidden = drafter.layer(table(ids[1 : stop + 1]), fused[:stop], torch.arange(stop), attend)
        states = torch.cat([fused[:stop], drafter.recycle(hidden[-1:])])
        tokens = ids[1 : stop + 2]
        hidden = drafter.layer(table(tokens), states, torch.arange(stop + 1), attend)
        rows[column + 2, IDS] = drafter.logits(hidden[-1])
    return rows


def found(true: dict[str, Any], declared: dict[str, Any]) -> dict[str, Variant]:
    """Rows for a drafter that computes one thing and declares another, by name."""
    module = tiny_drafter(tiny_config(rope_theta=50.0, **true)).eval().requires_grad_(False)
    config = replace(module.config, **declared)
    said = EagleDrafter(config)
    said.load_state_dict(module.state_dict())
    loaded = LoadedDrafter(said, config, IDS - torch.arange(40), "")
    torch.manual_seed(1)
    table = nn.Embedding(VOCAB, 16).requires_grad_(False)
    ids, features = torch.randint(0, VOCAB, (LENGTH,)), torch.randn(LENGTH, 48)
    logits = two_steps(module, table, ids, features)
    rows = compare_variants(loaded, TARGET, table, ids, features, logits, PROMPT)
    return {row.name: row for row in rows}


@pytest.mark.parametrize(
    ("true", "declared", "name"),
    [
        ({"norm_output": True}, {"norm_output": False}, "norm_output true"),
        ({"norm_output": False}, {"norm_output": True}, "norm_output false"),
        (
            {"norm_before_residual": True},
            {"norm_before_residual": False},
            "norm_before_residual true",
        ),
        ({}, {"rope_theta": 1e4}, "rope_theta 50, no scaling"),
        ({}, {"rope_scaling": YARN}, "rope_theta 50, no scaling"),
    ],
)
def test_what_was_computed_is_found(
    true: dict[str, Any], declared: dict[str, Any], name: str
) -> None:
    rows = found(true, declared)
    best = min(rows.values(), key=lambda row: row.ahead)
    assert best.name == name
    assert best.is_better(3)
    assert best.steps[1] == pytest.approx(1, abs=1e-4)
    assert rows[DECLARED].steps[1] < 0.99


def test_what_is_declared_rightly_is_best() -> None:
    rows = found({"num_hidden_layers": 2, "rope_scaling": YARN}, {})
    assert rows[DECLARED].steps[1] == pytest.approx(1, abs=1e-4)
    assert set(rows) == {
        DECLARED,
        "norm_output false",
        "norm_before_residual true",
        f"rope_theta 10000, {YARN}",
        "rope_theta 50, no scaling",
        "rope_theta 10000, no scaling",
    }
    assert not any(row.is_better(3) for row in rows.values())


def test_the_targets_scaling_is_tried_where_it_is_one_of_ours() -> None:
    config = tiny_config(mtp_head=True, aux_layers=(4,))

    def names(**parameters: Any) -> set[str]:
        found = variants_of(config, SimpleNamespace(rope_parameters=parameters))
        return found.keys() - {DECLARED, "norm_output false"}

    assert names(rope_type="default", rope_theta=10000.0) == set()
    assert names(rope_theta=10000.0, **YARN) == {f"rope_theta 10000, {YARN}"}
    assert names(rope_type="dynamic", rope_theta=10000.0, factor=2.0) == set()
    assert names(full_attention={"rope_theta": 1.0}) == set()


def probe(*ahead: float) -> LayerProbe:
    right = Row(0, 0, 0.5, 0.5, 0.0, 0.0)
    others = [Variant(f"v{i}", (0.5, 0.4), value, 0.01) for i, value in enumerate(ahead)]
    return LayerProbe(99, (right,), (Variant(DECLARED, (0.5, 0.4), 0.0, 0.0), *others))


def test_the_best_of_those_that_are_ahead_is_named() -> None:
    reason = verdict(probe(0.2, -0.05, -0.09))
    assert reason is not None
    assert reason.startswith("v2 agrees better than what is declared, by 0.0900 +- 0.0100")
    assert undecided(probe(0.2, -0.05, 0.02)) == ["v2"]
    assert verdict(probe(0.2, -0.02)) is None
