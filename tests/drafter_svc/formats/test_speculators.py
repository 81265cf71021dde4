"""Checkpoints of the speculators package, compared with that package's own forward pass.

The package wants an older transformers, so it runs in an environment of its own:
HOLDCOURSE_SPECULATORS_PYTHON names the Python of one.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from drafter_svc.formats.checkpoint import LoadedDrafter, load_checkpoint
from drafter_svc.formats.declared import UserOverrides
from drafter_svc.formats.writer import write_speculators
from tests.support.tiny_drafter import tiny_config, tiny_drafter

PEER = Path(__file__).parents[2] / "support" / "speculators_peer.py"
FEED = UserOverrides(target_fingerprint="feed")
TOLERANCE = 1e-4

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def python() -> str:
    named = os.environ.get("HOLDCOURSE_SPECULATORS_PYTHON")
    if named is None and importlib.util.find_spec("speculators") is None:
        pytest.skip("HOLDCOURSE_SPECULATORS_PYTHON names no Python with the speculators package")
    return named or sys.executable


def peer(python: str, *arguments: object) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [python, PEER, *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


class DenseAttention:
    """Step 0 is causal within the window; later steps add their own column's keys."""

    def __init__(self, layers: int, window: int | None) -> None:
        self._keys: list[list[Tensor]] = [[] for _ in range(layers)]
        self._values: list[list[Tensor]] = [[] for _ in range(layers)]
        self._window = window
        self._calls = 0

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        layer = self._calls % len(self._keys)
        self._calls += 1
        self._keys[layer].append(keys)
        self._values[layer].append(values)
        rows = torch.arange(len(queries))
        distance = rows[:, None] - rows
        seen = distance >= 0
        if self._window is not None:
            seen &= distance < self._window
        mask = torch.cat([seen] + [distance == 0] * (len(self._keys[layer]) - 1), dim=-1)
        group = queries.shape[1] // keys.shape[1]
        all_keys = torch.cat(self._keys[layer]).repeat_interleave(group, dim=1)
        all_values = torch.cat(self._values[layer]).repeat_interleave(group, dim=1)
        scores = torch.einsum("qhd,khd->hqk", queries, all_keys) * queries.shape[-1] ** -0.5
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, all_values).flatten(-2)


def logits_of(loaded: LoadedDrafter, embedding: Tensor, case: dict[str, Tensor]) -> Tensor:
    """As the package's training-time test: tokens shift left by one in each step, zeros behind."""
    config, module = loaded.config, loaded.module
    attend = DenseAttention(config.num_hidden_layers, config.sliding_window)
    tokens, state, steps = case["tokens"], module.fuse(case["features"]), []
    for step in range(len(case["logits"])):
        hidden = module.layer(
            nn.functional.embedding(tokens, embedding),
            state,
            torch.arange(len(tokens)) + step,
            attend,
        )
        steps.append(module.logits(hidden))
        state = module.recycle(hidden)
        tokens = torch.cat([tokens[1:], tokens.new_zeros(1)])
    return torch.stack(steps)


def test_every_toggle_combination_loads_and_computes_the_same(python: str, tmp_path: Path) -> None:
    peer(python, "create", tmp_path)
    worst: list[tuple[float, float, str]] = []
    for folder in sorted(tmp_path.iterdir()):
        toggles = json.loads((folder / "toggles.json").read_text())
        loaded = load_checkpoint(folder, dtype=torch.float32, given=FEED)
        config = loaded.config
        assert config.fc_norm == (toggles["norm"] == "fc_norm")
        assert config.norm_before_fc == (toggles["norm"] == "norm_before_fc")
        assert config.norm_output == toggles["norm_output"]
        assert config.norm_before_residual == toggles["norm_before_residual"]
        assert config.num_hidden_layers == toggles["layers"]
        assert config.qk_norm == (toggles["model"] == "qwen3")
        assert config.sliding_window == toggles.get("window")
        assert config.own_embeddings
        case = load_file(folder / "expected.st")
        logits = logits_of(loaded, loaded.module.embed_tokens.weight, case)
        gaps = (logits - case["logits"]).abs().flatten(1).max(-1).values.tolist()
        worst.append((gaps[0], max(gaps[1:]), str(toggles)))
    assert len(worst) > 100
    first, chained = max(worst), max(worst, key=lambda entry: entry[1])
    print(f"{len(worst)} drafters; largest difference of logits in the first step {first[0]:.1e},")
    print(f"in three chained steps {chained[1]:.1e}")
    assert first[0] < TOLERANCE, first
    assert chained[1] < TOLERANCE, chained


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
WRITTEN: list[dict[str, Any]] = [
    {},
    {"fc_norm": False, "norm_before_fc": True, "norm_before_residual": True},
    {"num_hidden_layers": 2, "attention_bias": True, "norm_output": False},
    {"qk_norm": True, "sliding_window": 6},
    {"draft_vocab_size": 97, "rope_scaling": YARN},
    {"own_embeddings": True},
]


def test_what_we_write_loads_there_and_computes_the_same(
    python: str, tmp_path: Path, tiny_llama: Path
) -> None:
    shapes = {"hidden_size": 32, "target_hidden_size": 32, "vocab_size": 97, "head_dim": 8}
    modules = [tiny_drafter(tiny_config(**(shapes | changes))) for changes in WRITTEN]
    for number, module in enumerate(modules):
        ids = torch.arange(module.config.draft_vocab_size)
        ids += len(ids) < 97
        write_speculators(tmp_path / str(number), module, ids, str(tiny_llama))
    peer(python, "forward", tmp_path)
    table = load_file(tiny_llama / "model.safetensors")["model.embed_tokens.weight"]
    table = table.bfloat16().float()  # as the package reads it, in the dtype of the checkpoint
    for number, module in enumerate(modules):
        loaded = load_checkpoint(tmp_path / str(number), dtype=torch.float32)
        assert loaded.config == module.config
        own = loaded.config.own_embeddings
        embedding = loaded.module.embed_tokens.weight if own else table
        case = load_file(tmp_path / str(number) / "expected.st")
        torch.testing.assert_close(
            logits_of(loaded, embedding, case), case["logits"], rtol=0, atol=TOLERANCE
        )


def test_the_comparison_can_fail(tmp_path: Path) -> None:
    """A toggle that is read wrong shows."""
    config = tiny_config(norm_before_residual=True)
    module = tiny_drafter(config)
    write_speculators(tmp_path, module, torch.arange(40), "target")
    loaded = load_checkpoint(tmp_path, dtype=torch.float32)
    values = json.loads((tmp_path / "config.json").read_text()) | {"norm_before_residual": False}
    (tmp_path / "config.json").write_text(json.dumps(values))
    other = load_checkpoint(tmp_path, dtype=torch.float32)
    case = {
        "features": torch.randn(9, 48),
        "tokens": torch.randint(0, 64, (9,)),
        "logits": torch.zeros(3),
    }
    table = torch.randn(64, 16)
    with torch.no_grad():
        gap = (logits_of(loaded, table, case) - logits_of(other, table, case)).abs().max()
    assert gap > 100 * TOLERANCE
