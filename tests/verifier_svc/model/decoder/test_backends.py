"""A target's decoder as one kernel: taken where it gives what its layers give, and only there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModel, GraniteConfig, LlamaConfig, MistralConfig

import speckernels as kernels
from speckernels import AttentionMetadata, QuerySegment
from tests.verifier_svc.model.decoder.test_fuse import ATTENTION, HEADS
from verifier_svc.kv.kv_cache import KVCache
from verifier_svc.model.decoder.attention import NAME
from verifier_svc.model.decoder.backends import CaptureSpec, CpuKernelBackend, TransformersBackend
from verifier_svc.model.decoder.fuse import fuse
from verifier_svc.model.decoder.select_backend import select_backend


@pytest.fixture(autouse=True)
def compiled() -> Iterator[None]:
    kernels.load_kernels("auto")
    if kernels.pack_tiles(torch.zeros(32, 32, dtype=torch.bfloat16)) is None:
        pytest.skip("no kernels here")
    yield
    kernels.load_kernels("off")


def decoder(config: Any) -> Any:
    """A decoder of three layers, whose parts are fused."""
    config._attn_implementation = NAME
    module = AutoModel.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)
    for name, parameter in module.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.1)
    fuse(module)
    return module


def cache_of(layers: int) -> KVCache:
    return KVCache(
        blocks=10, layers=layers, kv_heads=2, head_dim=32, feature_width=3 * 64,
        dtype=torch.bfloat16, device=torch.device("cpu"),
    )  # fmt: skip


@pytest.mark.parametrize("config", ATTENTION, ids=lambda config: type(config).__name__)
@pytest.mark.parametrize("counts", [[1], [3, 1, 7], [2, 40]])  # decoding, and beside a prompt
def test_a_kernel_takes_the_steps_of_a_decoder(config: Any, counts: list[int]) -> None:
    torch.manual_seed(0)
    module = decoder(config)
    bodies = [TransformersBackend(module, 3), select_backend(module, 3, 2, 32)]
    assert isinstance(bodies[1], CpuKernelBackend)
    starts, past = (0, 48, 64), [torch.randn(161, 2, 32).bfloat16() for _ in range(6)]
    segments = [
        QuerySegment(sum(counts[:i]), count, starts[i], 5 + i, prompt=count == 40)
        for i, count in enumerate(counts)
    ]
    slots = torch.cat([torch.arange(s.count) + s.start + s.length - 1 for s in segments])
    rows = torch.stack([torch.randint(61, slots.shape), slots % 48, slots])
    left = []
    for body in bodies:
        cache = cache_of(3)
        for pool, kept in zip((*cache.keys, *cache.values), past, strict=True):
            pool.copy_(kept)
        reach = AttentionMetadata(segments, block=16)
        hidden = body.run(rows, reach, cache, CaptureSpec((3, 0, 2), cache.features, slots))
        left.append([hidden, cache.features[slots], *cache.keys, *cache.values])
        others = torch.ones(161, dtype=torch.bool).index_fill(0, slots, False)
        assert not cache.features[others[:-1]].any()
        assert torch.equal(cache.keys[1][others], past[1][others])
    assert all(map(torch.equal, *left))


def test_a_kernel_refuses_tokens_and_positions_that_are_not_there() -> None:
    whole = CpuKernelBackend.of(decoder(ATTENTION[0]), 3, 128)
    assert whole is not None
    cache = cache_of(3)
    for token, position in ((61, 0), (-1, 0), (0, 128), (0, -1)):
        rows = torch.tensor([[token], [position], [0]])
        with pytest.raises(IndexError, match="token or a position"):
            whole.run(
                rows,
                AttentionMetadata([QuerySegment(0, 1, 0, 1)]),
                cache,
                CaptureSpec((), cache.features, rows[2]),
            )


# Far positions are turned by other factors than near ones, as long as there are any.
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 16,
    "long_factor": [4.0] * 16,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**HEADS, rope_parameters=LONG),
        GraniteConfig(**HEADS, embedding_multiplier=12.0),
    ],
    ids=lambda config: type(config).__name__,
)
def test_a_decoder_that_differs_is_left_to_its_layers(config: Any) -> None:
    module = decoder(config)
    assert CpuKernelBackend.of(module, 3, 128) is not None, "by its form it could be one kernel"
    assert isinstance(select_backend(module, 3, 2, 32), TransformersBackend)


def test_layers_of_which_one_is_hooked_are_no_kernel() -> None:
    module = AutoModel.from_config(LlamaConfig(**HEADS), dtype=torch.bfloat16)
    module.layers[1].mlp.up_proj.register_forward_hook(lambda *_: None)
    fuse(module)
    assert CpuKernelBackend.of(module, 3, 128) is None


def test_batches_reach_beyond_a_window() -> None:
    config = MistralConfig(**HEADS, sliding_window=7)
    module = decoder(config)
    body = select_backend(module, 3, 2, 32)
    assert isinstance(body, CpuKernelBackend)
    left = []
    for each in (TransformersBackend(module, 3), body):
        cache, states = cache_of(3), []
        for start, count in ((0, 5), (5, 2), (7, 1), (8, 6), (14, 1)):
            slots = torch.arange(start, start + count)
            rows = torch.stack([slots % 61, slots, slots])
            reach = AttentionMetadata([QuerySegment(0, count, 0, start + 1)], block=16)
            states.append(each.run(rows, reach, cache, CaptureSpec((), cache.features, slots)))
        left.append([torch.cat(states), *cache.keys, *cache.values])
    for got, wanted in zip(left[1], left[0], strict=True):
        torch.testing.assert_close(got, wanted, rtol=2e-2, atol=2e-2)
    assert torch.equal(left[1][0][8:], left[0][0][8:])
