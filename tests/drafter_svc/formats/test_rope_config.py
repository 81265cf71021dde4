"""Rotary positions and windows, wherever a config says them."""

from typing import Any

import pytest

from tests.support.foreign_checkpoints import GIVEN, foreign, read

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("written", "scaling"),
    [
        ({"rope_scaling": {"rope_type": "default", "rope_theta": 5e5}}, None),
        ({"rope_scaling": YARN | {"rope_theta": 5e5}}, YARN),
        ({"rope_parameters": YARN | {"rope_theta": 5e5}}, YARN),
        ({"rope_theta": 5e5, "rope_scaling": YARN | {"mscale_all_dim": 0.0}}, YARN),
        ({"rope_theta": 500000, "rope_scaling": YARN, "rope_parameters": YARN}, YARN),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 1]}}, None),
        (
            {
                "rope_theta": 5e5,
                "original_max_position_embeddings": 32,
                "rope_scaling": {"type": "yarn", "factor": 4.0},
            },
            YARN,
        ),
        ({"rope_theta": 5e5, "original_max_position_embeddings": 32}, None),
    ],
)
def test_rope_is_read_wherever_it_stands(
    written: dict[str, Any], scaling: dict[str, Any] | None
) -> None:
    values = foreign()
    del values["rope_theta"], values["rope_scaling"]
    config = read(values | written, GIVEN)
    assert (config.rope_theta, config.rope_scaling) == (5e5, scaling)


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": ["full_attention"] * 36},  # the target's
        {"sliding_window": 128},  # as wide as the longest text
        {"sliding_window": 500, "layer_types": ["sliding_attention"] * 36},
        {"sliding_window": 9, "use_sliding_window": False},
    ],
)
def test_windows_that_hide_nothing_are_none(changes: dict[str, Any]) -> None:
    assert read(foreign(**changes), GIVEN).sliding_window is None
