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
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaRMSNorm,
)
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3DecoderLayer

from specwire import kernels
from specwire.kernels import Reach, Segment
from verifier_svc.attention import NAME, AttentionPlan
from verifier_svc.fuse import fuse, stack
from verifier_svc.fused import FusedAttention, FusedMLP, FusedNorm

SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
# Heads of a width that all kernels take.
HEADS: dict[str, Any] = {**SHAPE, "num_key_value_heads": 2, "head_dim": 32}
ATTENTION = [
    LlamaConfig(**HEADS),
    LlamaConfig(**HEADS, attention_bias=True),
    Qwen2Config(**HEADS),  # a bias in all but the last
    Qwen3Config(**HEADS),  # heads are normed
]


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
    reach = Reach([Segment(0, 3, 0, 6), Segment(3, 4, 16, 1)], block=16)
    angles = torch.tensor([5, 6, 7, 0, 1, 2, 3])[:, None] * torch.rand(16)
    angles = torch.cat([angles, angles], -1)[None]
    embeddings = angles.cos().to(dtype), angles.sin().to(dtype)
    rows, past = torch.randn(1, 7, 64).to(dtype), torch.randn(32, 2, 32).to(dtype)
    outputs, kept = [], []
    for module in (plain, quick):
        pools = [past.clone(), past.clone()], [past.clone(), past.clone()]
        slots = torch.tensor([5, 6, 7, 16, 17, 18, 19])
        plan = AttentionPlan(reach, slots, tuple(pools[0]), tuple(pools[1]))
        outputs.append(module(rows, position_embeddings=embeddings, attention_mask=None, plan=plan))
        assert torch.equal(pools[0][0], past)
        kept.append(torch.cat([pools[0][1], pools[1][1]]))
    assert near(outputs[1][0], outputs[0][0])
    assert near(kept[1], kept[0])


LAYERS = {
    LlamaConfig: LlamaDecoderLayer,
    Qwen2Config: Qwen2DecoderLayer,
    Qwen3Config: Qwen3DecoderLayer,
}


@pytest.mark.parametrize("config", ATTENTION, ids=lambda config: type(config).__name__)
def test_a_stack_takes_the_steps_of_its_layers(config: Any) -> None:
    config._attn_implementation = NAME
    layers = [fused(LAYERS[type(config)](config, i), torch.bfloat16) for i in range(3)]
    plain, quick = ([pair[i] for pair in layers] for i in range(2))
    whole = stack(quick)
    if kernels.tiled(torch.zeros(32, 32, dtype=torch.bfloat16)) is None:
        assert whole is None
        return
    assert whole is not None
    angles = torch.arange(80)[:, None] * torch.rand(16)
    angles = torch.cat([angles, angles], -1)[None]
    past = torch.randn(160, 2, 32).bfloat16()
    # Rows that decode, and beside a prompt.
    for counts in ([1], [3, 1, 7], [2, 40]):
        starts = [0, 48, 64]
        segments = [
            Segment(sum(counts[:i]), count, starts[i], 5 + i, prompt=count == 40)
            for i, count in enumerate(counts)
        ]
        slots = torch.cat([torch.arange(s.count) + s.start + s.length - 1 for s in segments])
        rows = torch.randn(1, sum(counts), 64).bfloat16()
        before = rows.clone()
        table = angles[:, slots % 48]
        outputs, inputs, kept = [], [], []
        for run in (lambda **a: one_by_one(plain, **a), lambda **a: one_by_one(quick, **a), whole):
            pools = [past.clone() for _ in range(6)]
            reach = Reach(segments, block=16)
            plan = AttentionPlan(reach, slots, tuple(pools[:3]), tuple(pools[3:]))
            captured = {1: torch.empty(0), 3: torch.empty(0)}
            outputs.append(
                run(
                    hidden_states=rows,
                    position_embeddings=(table.cos().bfloat16(), table.sin().bfloat16()),
                    attention_mask=None,
                    plan=plan,
                    captured=captured,
                )
            )
            inputs.append(captured[1])
            kept.append(torch.cat(pools))
        assert near(outputs[1], outputs[0])
        assert torch.equal(outputs[2], outputs[1])
        assert torch.equal(kept[2], kept[1])
        assert torch.equal(inputs[2], inputs[1])
        assert torch.equal(captured[3], outputs[2][0])
        assert torch.equal(rows, before)


def one_by_one(
    layers: list[Any],
    *,
    hidden_states: torch.Tensor,
    captured: dict[int, torch.Tensor],
    **others: Any,
) -> torch.Tensor:
    """The output of the last layer; what enters the second one is captured."""
    for index, layer in enumerate(layers):
        if index == 1:
            captured[1] = hidden_states[0]
        output = layer(hidden_states, **others)
        hidden_states = output[0] if isinstance(output, tuple) else output
    return hidden_states


def test_layers_of_which_one_is_hooked_are_no_stack() -> None:
    config = ATTENTION[0]
    config._attn_implementation = NAME
    layer = LlamaDecoderLayer(config, 0)
    layer.mlp.up_proj.register_forward_hook(lambda *_: None)
    assert stack([fused(layer, torch.bfloat16)[1]]) is None
    assert stack([]) is None


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
