"""Fused norms and MLPs: taken where they give what the layers give, and only there."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import GemmaConfig, LlamaConfig, Qwen3Config
from transformers.models.gemma.modeling_gemma import GemmaMLP, GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from specwire import kernels
from specwire.torch import packable
from verifier_svc.fuse import FusedMLP, FusedNorm, fuse

SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}


@pytest.fixture(params=["auto", "off"], autouse=True)
def compiled(request: pytest.FixtureRequest) -> Iterator[None]:
    kernels.prepare(request.param)
    yield
    kernels.prepare("off")


def fused(module: torch.nn.Module, dtype: torch.dtype) -> tuple[Any, Any]:
    """The module and its fused form, both as the only child of another."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    outer = torch.nn.Sequential(module.to(dtype)).requires_grad_(False)
    inner = copy.deepcopy(outer)
    fuse(inner)
    return outer[0], inner[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms(dtype: torch.dtype) -> None:
    plain, quick = fused(LlamaRMSNorm(64, eps=1e-5), dtype)
    assert isinstance(quick, FusedNorm)
    rows = torch.randn(2, 5, 64).to(dtype) * 7
    close = {"rtol": 2e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(quick(rows), plain(rows), **close)


@pytest.mark.parametrize("biased", [False, True])
def test_mlps(biased: bool) -> None:
    plain, quick = fused(LlamaMLP(LlamaConfig(**SHAPE, mlp_bias=biased)), torch.bfloat16)
    assert isinstance(quick, FusedMLP) == packable(plain.gate_proj.weight)
    rows = torch.randn(1, 5, 64).bfloat16()
    got, wanted = quick(rows).double(), plain(rows).double()
    assert (got - wanted).norm() < 1e-2 * wanted.norm()


def test_norms_of_heads() -> None:
    config = Qwen3Config(**SHAPE, head_dim=16, num_key_value_heads=2)
    plain, quick = fused(Qwen3Attention(config, 0), torch.float32)
    assert isinstance(quick.q_norm, FusedNorm)
    rows = torch.randn(1, 5, 4, 16)
    torch.testing.assert_close(quick.q_norm(rows), plain.q_norm(rows))


def test_layers_that_differ_are_left_as_they_are() -> None:
    norm = fused(GemmaRMSNorm(64), torch.float32)[1]
    assert isinstance(norm, GemmaRMSNorm)  # its weights are about zero
    mlp = fused(GemmaMLP(GemmaConfig(**SHAPE)), torch.bfloat16)[1]
    assert isinstance(mlp, GemmaMLP)  # its activation is another


def test_hooked_layers_are_left_as_they_are() -> None:
    mlp = LlamaMLP(LlamaConfig(**SHAPE)).bfloat16()
    mlp.up_proj.register_forward_hook(lambda *_: None)
    norm = LlamaRMSNorm(64)
    norm.register_forward_pre_hook(lambda *_: None)
    outer = torch.nn.Sequential(mlp, norm)
    fuse(outer)
    assert [type(child) for child in outer] == [LlamaMLP, LlamaRMSNorm]
