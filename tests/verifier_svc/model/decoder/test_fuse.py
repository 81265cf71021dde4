"""Fused norms and MLPs: taken where they give what the layers give, and only there."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import GemmaConfig, LlamaConfig, Qwen2Config, Qwen3Config
from transformers.models.gemma.modeling_gemma import GemmaMLP, GemmaRMSNorm
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
)
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

import speckernels as kernels
from speckernels import AttentionMetadata, QuerySegment
from verifier_svc.model.decoder.attention import NAME, AttentionPlan
from verifier_svc.model.decoder.fuse import fuse
from verifier_svc.model.decoder.fused_layers import FusedAttention, FusedMLP, FusedNorm

SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
# Heads of a width that all kernels take.
HEADS: dict[str, Any] = {
    **SHAPE,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_hidden_layers": 3,
    "vocab_size": 61,
    "max_position_embeddings": 128,
    "pad_token_id": None,
}
ATTENTION = [
    LlamaConfig(**HEADS),
    LlamaConfig(**HEADS, attention_bias=True),
    Qwen2Config(**HEADS),  # a bias in all but the last
    Qwen3Config(**HEADS),  # heads are normed
]


@pytest.fixture(params=["auto", "off"], autouse=True)
def compiled(request: pytest.FixtureRequest) -> Iterator[None]:
    kernels.load_kernels(request.param)
    yield
    kernels.load_kernels("off")


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
    far = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(quick(rows), plain(rows), rtol=far, atol=far)


def near(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    limit = 1e-2 if wanted.dtype == torch.bfloat16 else 1e-6
    return bool((got.double() - wanted.double()).norm() < limit * wanted.double().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
def test_mlps(biased: bool, dtype: torch.dtype) -> None:
    plain, quick = fused(LlamaMLP(LlamaConfig(**SHAPE, mlp_bias=biased)), dtype)
    assert isinstance(quick, FusedMLP)
    rows = torch.randn(1, 5, 64).to(dtype)
    assert near(quick(rows), plain(rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", ATTENTION, ids=lambda config: type(config).__name__)
def test_attention(config: Any, dtype: torch.dtype) -> None:
    config._attn_implementation = NAME
    kind = {LlamaConfig: LlamaAttention, Qwen2Config: Qwen2Attention, Qwen3Config: Qwen3Attention}
    plain, quick = fused(kind[type(config)](config, 1), dtype)
    assert isinstance(quick, FusedAttention)
    # Rows of two sequences, one of them with a past.
    reach = AttentionMetadata([QuerySegment(0, 3, 0, 6), QuerySegment(3, 4, 16, 1)], block=16)
    angles = torch.tensor([5, 6, 7, 0, 1, 2, 3])[:, None] * torch.rand(16)
    angles = torch.cat([angles, angles], -1)[None]
    embeddings = angles.cos().to(dtype), angles.sin().to(dtype)
    rows, past = torch.randn(1, 7, 64).to(dtype), torch.randn(32, 2, 32).to(dtype)
    outputs, kept = [], []
    for module in (plain, quick):
        pools = [past.clone(), past.clone()], [past.clone(), past.clone()]
        slots = torch.tensor([5, 6, 7, 16, 17, 18, 19])
        plan = AttentionPlan(reach, slots, tuple(pools[0]), tuple(pools[1]))
        with plan.followed():
            outputs.append(module(rows, position_embeddings=embeddings, attention_mask=None))
        assert torch.equal(pools[0][0], past)
        kept.append(torch.cat([pools[0][1], pools[1][1]]))
    assert near(outputs[1][0], outputs[0][0])
    assert near(kept[1], kept[0])


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
