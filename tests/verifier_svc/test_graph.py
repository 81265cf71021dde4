"""A decoder as on a GPU: what is recorded, how batches are filled up, and what ends recording."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import structlog
import torch
from transformers import AutoModel, LlamaConfig, Qwen3Config

from specwire.kernels import Reach, Segment, called
from specwire.kernels.graph import Replay, Tensors, Work
from tests.families.tiny import tiny_config, write_tiny
from tests.families.walk import load
from tests.support.flash import record_bodies
from tests.support.running_engine import RunningEngine, reference_of, settings_for
from tests.support.scripted_drafter import ScriptedDrafter, good, welcome_for
from tests.support.tiny_llama import write_tiny_llama
from tests.verifier_svc.engine_parts import LENGTH, PROMPTS, generate_all
from tests.verifier_svc.test_fuse import HEADS
from verifier_svc.attention import NAME
from verifier_svc.bodies import body_of
from verifier_svc.body import Kept, ModuleBody
from verifier_svc.build import build_target, find_target
from verifier_svc.cache import KVCache
from verifier_svc.fuse import fuse
from verifier_svc.fused import FusedAttention, FusedNorm
from verifier_svc.graph import GraphBody


class Counting:
    """A recorder that keeps how many rows it recorded."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, work: Work) -> tuple[Tensors, Replay]:
        results, replay = called(work)
        self.sizes.append(len(results[0]))
        return results, replay


@pytest.fixture(autouse=True)
def flash(monkeypatch: pytest.MonkeyPatch) -> None:
    record_bodies(monkeypatch)


@pytest.fixture
def module() -> Any:
    return decoder(LlamaConfig(**HEADS))


def decoder(config: Any) -> Any:
    config._attn_implementation = NAME
    torch.manual_seed(0)
    module = AutoModel.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    fuse(module)
    return module


def cache_of(device: str = "cpu", dtype: torch.dtype = torch.float32) -> KVCache:
    return KVCache(
        blocks=40, layers=3, kv_heads=2, head_dim=32, feature_width=2 * 64, dtype=dtype,
        device=torch.device(device),
    )  # fmt: skip


def batch(counts: list[int], past: int = 5) -> tuple[torch.Tensor, list[Segment]]:
    """Rows of sequences that hold `past` tokens each, 32 slots apart, and their segments."""
    segments = [Segment(sum(counts[:i]), count, 32 * i, past + 1) for i, count in enumerate(counts)]
    slots = torch.cat([torch.arange(s.count) + s.start + past for s in segments])
    tokens = torch.randint(61, slots.shape, generator=torch.Generator().manual_seed(sum(counts)))
    return torch.stack([tokens, slots % 32, slots]), segments


def run(body: Any, cache: KVCache, counts: list[int]) -> torch.Tensor:
    rows, segments = batch(counts)
    kept = Kept((0, 2), cache.features, rows[2])
    hidden: torch.Tensor = body.run(rows, Reach(segments, block=16), cache, kept)
    return hidden.clone()


@torch.inference_mode()
def test_batches_are_filled_up_to_sizes_that_are_recorded_once(module: Any) -> None:
    parts, record = ModuleBody(module, 3), Counting()
    graphs, caches = GraphBody(parts, 64, record), (cache_of(), cache_of())
    for counts in ([1], [3, 1, 1], [2], [1, 1, 4], [1], [5, 7], [16], [1] * 10, [2, 3]):
        wanted, got = (
            run(body, c, counts) for body, c in zip((parts, graphs), caches, strict=True)
        )
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
        for left in ("features", "keys", "values"):
            pools = [getattr(cache, left) for cache in caches]
            pairs = [pools] if left == "features" else zip(*pools, strict=True)
            for one, other in pairs:
                spare = caches[0].spare
                torch.testing.assert_close(one[:spare], other[:spare], rtol=1e-4, atol=1e-5)
    # Rows that decode without drafts attend in another way than others: 1 and 16 came twice.
    assert record.sizes == [1, 8, 2, 16, 16]


@torch.inference_mode()
def test_prompts_and_large_batches_run_as_they_are(module: Any) -> None:
    parts, record = ModuleBody(module, 3), Counting()
    graphs, cache = GraphBody(parts, 64, record), cache_of()
    for counts in ([17], [1, 20, 1], [13] * 20):
        wanted, got = run(parts, cache_of(), counts), run(graphs, cache, counts)
        assert torch.equal(got, wanted)
    assert not record.sizes


@torch.inference_mode()
def test_what_cannot_be_recorded_runs_as_it_is(module: Any) -> None:
    def fails(_: Work) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nat ...")

    parts = ModuleBody(module, 3)
    graphs, cache = GraphBody(parts, 64, fails), cache_of()
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            assert torch.equal(run(graphs, cache, [2, 1]), run(parts, cache_of(), [2, 1]))
    assert [log["reason"] for log in logs] == ["operation not permitted when stream is capturing"]


def test_graphs_that_give_something_else_are_not_used(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(body_of(module, 3, 2, 32), GraphBody)
    assert isinstance(body_of(module, 3, 2, 32, record=False), ModuleBody)

    def stale(work: Work) -> tuple[Tensors, Replay]:
        return work(), lambda: None

    monkeypatch.setattr("verifier_svc.graph.Recorder", lambda: stale)
    assert isinstance(body_of(module, 3, 2, 32), ModuleBody)


@pytest.mark.parametrize("config", [LlamaConfig(**HEADS), Qwen3Config(**HEADS)])
@torch.inference_mode()
def test_a_forward_neither_waits_for_its_device_nor_mixes_it_with_others(config: Any) -> None:
    """On `meta`, which holds no numbers, whatever asks for one fails."""
    module = to_meta(decoder(config))
    graphs = GraphBody(ModuleBody(module, 3), 64, called)
    cache = cache_of("meta")
    rows, segments = batch([3, 1, 5])
    rows = rows.to("meta")
    hidden = graphs.run(rows, Reach(segments), cache, Kept((0, 2), cache.features, rows[2]))
    assert hidden.is_meta
    assert hidden.shape == (9, 64)
    with pytest.raises(RuntimeError, match="meta"):
        hidden.sum().item()


def to_meta(module: Any) -> Any:
    """The module without numbers, and what its fused parts hold."""
    module.to("meta")
    for part in module.modules():
        norms = part.norms if isinstance(part, FusedAttention) else [part]
        for norm in norms:
            if isinstance(norm, FusedNorm):
                norm.weight = norm.weight.to("meta")
    return module


@pytest.mark.parametrize("length", ["0", "3", "auto"])
def test_graphs_change_no_token(tmp_path: Path, length: str) -> None:
    folder = write_tiny_llama(tmp_path)
    settings = settings_for(folder)
    target = build_target(settings, find_target(settings))
    assert isinstance(target._body, GraphBody)
    texts = [
        reference_of(folder)
        .generate(
            torch.tensor([prompt]), max_new_tokens=LENGTH, do_sample=False, eos_token_id=None
        )[0]
        .tolist()
        for prompt in PROMPTS
    ]
    port = ScriptedDrafter(welcome_for(target), good(texts, wrong=0.2))
    with RunningEngine(folder, port, "--draft-length", length, target=target) as engine:
        results = generate_all(engine)
    assert [result.text for result in results] == texts
    drafted = sum(result.finished.usage.drafted_rounds for result in results)
    assert (drafted > 0) == (length != "0")


@pytest.mark.parametrize(("family", "kind"), [("mistral", GraphBody), ("gpt_oss", ModuleBody)])
def test_windows_are_recorded_and_sinks_are_not(
    family: str, kind: type[Any], tmp_path: Path
) -> None:
    """Either proves as it is loaded that it attends within its windows."""
    target = load(write_tiny(tiny_config(family), tmp_path))
    assert isinstance(target._body, kind)
