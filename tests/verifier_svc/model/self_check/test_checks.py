"""A target that would be served otherwise than its own forward runs is refused as it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import speckernels as kernels
from tests.families.tiny import tiny_config, write_tiny
from tests.families.walk import load
from verifier_svc.model.decoder.attention import AttentionPlan
from verifier_svc.model.lm_head import LMHead
from verifier_svc.model.loading.loader import TargetError

attend = kernels.paged_attention
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module", params=["gpt_oss", "gemma2", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models with windows and sinks, with windows and soft caps, and with neither."""
    return write_tiny(tiny_config(request.param), tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_right_passes_in_every_dtype(folder: Path, dtype: torch.dtype) -> None:
    assert load(folder, dtype).max_position == 256


def without(name: str) -> Callable[..., torch.Tensor]:
    def wrong(*args: Any, **kwargs: Any) -> torch.Tensor:
        return attend(*args, **{**kwargs, name: None})

    return wrong


def scaled(*args: Any, **kwargs: Any) -> torch.Tensor:
    query, keys, values, reach, scale = args
    return attend(query, keys, values, reach, scale * 1.3, **kwargs)


def shifted(*args: Any, **kwargs: Any) -> torch.Tensor:
    query, keys, values, reach, scale = args
    return attend(query, keys.roll(1, 0), values, reach, scale, **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "wrong"),
    [
        ("mistral", without("window")),
        ("gpt_oss", without("sinks")),
        ("llama", scaled),
        ("llama", shifted),
    ],
    ids=["window", "sinks", "scale", "slots"],
)
def test_attention_that_differs_is_refused(
    family: str,
    wrong: Callable[..., torch.Tensor],
    dtype: torch.dtype,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_tiny(tiny_config(family), tmp_path)
    load(tmp_path, dtype)
    monkeypatch.setattr("speckernels.paged_attention", wrong)
    with pytest.raises(TargetError, match="its states differ from those of its own forward"):
        load(tmp_path, dtype)


def test_soft_caps_that_are_left_out_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny(tiny_config("gemma2", attn_logit_softcapping=0.5), tmp_path)
    load(tmp_path)
    monkeypatch.setattr("speckernels.paged_attention", without("softcap"))
    with pytest.raises(TargetError, match="its states differ"):
        load(tmp_path)


def test_a_draft_that_is_not_taken_back_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows see one key too many: what is left of a wrong draft, or of those before."""
    write_tiny(tiny_config("llama"), tmp_path)
    real = AttentionPlan.attend

    def late(self: AttentionPlan, layer: int, *rows: Any) -> torch.Tensor:
        out = real(self, layer, *rows)
        self.keys[layer].roll(1, 0)
        self.keys[layer][self.slots[:1]] += 1.0
        return out

    monkeypatch.setattr(AttentionPlan, "attend", late)
    with pytest.raises(TargetError, match="its states differ"):
        load(tmp_path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("family", "scaling"), [("hyperclovax", 6.0), ("granite", 6.0), ("granite", 0.3)]
)
def test_heads_multiply_or_divide_as_their_model_does(
    family: str, scaling: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    write_tiny(tiny_config(family, logits_scaling=scaling), tmp_path)
    target = load(tmp_path, dtype)
    states = torch.randn(3, target.hidden_size).to(dtype)
    with torch.inference_mode():
        plain = LMHead(target.model.get_output_embeddings(), target.config).logits(states)
        factor = scaling if family == "hyperclovax" else 1 / scaling
        torch.testing.assert_close(target.head.logits(states), plain * factor)


def test_a_head_that_does_more_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny(tiny_config("llama"), tmp_path)
    real = LMHead.logits
    monkeypatch.setattr(LMHead, "logits", lambda self, hidden: real(self, hidden) * 1.01)
    with pytest.raises(TargetError, match="its logits are more than a linear map"):
        load(tmp_path)


def test_a_best_token_that_is_not_the_best_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny(tiny_config("llama"), tmp_path)
    real = LMHead.argmax
    monkeypatch.setattr(LMHead, "argmax", lambda self, hidden: (real(self, hidden) + 1) % 97)
    with pytest.raises(TargetError, match="its best tokens are not those of the largest logits"):
        load(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_with_their_weight(
    value: float, tmp_path: Path
) -> None:
    file = write_tiny(tiny_config("llama"), tmp_path) / "model.safetensors"
    tensors, name = load_file(file), "model.layers.0.mlp.up_proj.weight"
    tensors[name][3, 5] = value
    save_file(tensors, file, metadata={"format": "pt"})
    sentence = rf"its own forward gives values that are not finite \(nor is {name}\)"
    with pytest.raises(TargetError, match=sentence):
        load(tmp_path)
