"""A decoder as on a GPU: what is recorded, how batches are filled up, and what ends recording."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import structlog
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel, LlamaConfig, Qwen3Config

from speckernels import AttentionMetadata, QuerySegment, eager_capture
from speckernels import flash_attention as kernel
from speckernels.cuda_graph import Replay, Tensors, Work
from tests.families.tiny import tiny_config, write_tiny
from tests.families.walk import load
from tests.support.engine_fixtures import LENGTH, PROMPTS, generate_all
from tests.support.fake_flash_attention import record_bodies
from tests.support.running_engine import RunningEngine, reference_of, settings_for
from tests.support.scripted_drafter import ScriptedDrafter, good, welcome_for
from tests.support.tiny_llama import write_tiny_llama
from tests.verifier_svc.model.decoder.test_fuse import HEADS
from verifier_svc.build import build_target, find_target
from verifier_svc.kv.kv_cache import KVCache
from verifier_svc.model.decoder.attention import NAME, Scoring
from verifier_svc.model.decoder.backends import CaptureSpec, TransformersBackend
from verifier_svc.model.decoder.cuda_graph_backend import CudaGraphBackend
from verifier_svc.model.decoder.fuse import fuse
from verifier_svc.model.decoder.fused_layers import FusedAttention, FusedNorm
from verifier_svc.model.decoder.select_backend import select_backend
from verifier_svc.model.decoder.sync_detector import NoWaits
from verifier_svc.model.loading.loader import TargetError

CAPTURE = "verifier_svc.model.decoder.select_backend.CudaGraphCapture"


class Counting:
    """A recorder that keeps how many rows it recorded."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, work: Work) -> tuple[Tensors, Replay]:
        results, replay = eager_capture(work)
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
        blocks=80, layers=3, kv_heads=2, head_dim=32, feature_width=2 * 64, dtype=dtype,
        device=torch.device(device),
    )  # fmt: skip


def batch(counts: list[int], past: int = 5) -> tuple[torch.Tensor, list[QuerySegment]]:
    """Rows of sequences that hold `past` tokens each, 32 slots apart, and their segments."""
    segments = [
        QuerySegment(sum(counts[:i]), count, 32 * i, past + 1) for i, count in enumerate(counts)
    ]
    slots = torch.cat([torch.arange(s.count) + s.start + past for s in segments])
    tokens = torch.randint(61, slots.shape, generator=torch.Generator().manual_seed(sum(counts)))
    return torch.stack([tokens, slots % 32, slots]), segments


def run(
    body: Any,
    cache: KVCache,
    counts: list[int],
    *,
    layers: tuple[int, ...] = (0, 2),
    prompts: Collection[int] = (),
) -> torch.Tensor:
    """Final states of sequences of so many rows, those of `prompts` as of a prompt."""
    rows, segments = batch(counts)
    segments = [replace(s, prompt=index in prompts) for index, s in enumerate(segments)]
    kept = CaptureSpec(layers, cache.features, rows[2])
    hidden: torch.Tensor = body.run(rows, AttentionMetadata(segments, block=16), cache, kept)
    return hidden.clone()


@torch.inference_mode()
def test_batches_are_filled_up_to_sizes_that_are_recorded_once(module: Any) -> None:
    parts, record = TransformersBackend(module, 3), Counting()
    graphs, caches = CudaGraphBackend(parts, 64, record), (cache_of(), cache_of())
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
    # With drafts or without them.
    assert record.sizes == [1, 8, 2, 16]


@torch.inference_mode()
def test_each_row_of_a_recorded_batch_is_a_segment_of_its_own(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys are then split, and rows with drafts and without take the same kernel."""
    seen: list[tuple[int, int]] = []
    served = kernel._forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        seen.append((args[5], len(kwargs["seqused_k"])))
        return served(*args, **kwargs)

    monkeypatch.setattr(kernel, "_forward", forward)
    graphs, cache = CudaGraphBackend(TransformersBackend(module, 3), 64, eager_capture), cache_of()
    for counts in ([3, 1, 2], [1] * 6):
        run(graphs, cache, counts)
    assert set(seen) == {(1, 8)}


@torch.inference_mode()
def test_prompts_and_large_batches_run_as_they_are(module: Any) -> None:
    parts, record = TransformersBackend(module, 3), Counting()
    graphs, cache = CudaGraphBackend(parts, 64, record), cache_of()
    for counts, prompts in (([1], {0}), ([1, 20, 1], {1}), ([13] * 40, set())):
        wanted = run(parts, cache_of(), counts, prompts=prompts)
        assert torch.equal(run(graphs, cache, counts, prompts=prompts), wanted)
    assert not record.sizes


@torch.inference_mode()
def test_other_layers_are_recorded_before_they_are_asked_for(module: Any) -> None:
    record = Counting()
    graphs, caches = (
        CudaGraphBackend(TransformersBackend(module, 3), 64, record),
        (cache_of(), cache_of()),
    )
    for counts in ([1], [7]):
        run(graphs, caches[0], counts)
    graphs.recapture((0, 2), (1, 3))
    assert record.sizes == [1, 8, 8, 1]
    for cache, counts in zip(caches, ([1], [7]), strict=True):
        wanted, got = (
            run(body, cache, counts, layers=(1, 3))
            for body in (TransformersBackend(module, 3), graphs)
        )
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    # A cache that nothing was recorded in records what it needs.
    assert record.sizes == [1, 8, 8, 1, 8]


@torch.inference_mode()
def test_layers_that_change_again_and_again_are_not_recorded_for_ever(module: Any) -> None:
    record = Counting()
    parts = TransformersBackend(module, 3)
    graphs, cache = CudaGraphBackend(parts, 64, record), cache_of()
    sets: list[tuple[int, ...]] = [(0, 2), (1, 2), (2, 3), (0, 3), (0, 1)]
    with structlog.testing.capture_logs() as logs:
        for layers in sets:
            wanted = run(parts, cache_of(), [2], layers=layers)
            torch.testing.assert_close(run(graphs, cache, [2], layers=layers), wanted)
    assert record.sizes == [2] * 4
    assert [log["reason"] for log in logs] == ["other layers have been captured too often"]
    assert not graphs.alive
    # Those that are there still serve.
    run(graphs, cache, [2])
    assert record.sizes == [2] * 4


@torch.inference_mode()
def test_what_cannot_be_recorded_runs_as_it_is(module: Any) -> None:
    def fails(_: Work) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nat ...")

    parts = TransformersBackend(module, 3)
    graphs, cache = CudaGraphBackend(parts, 64, fails), cache_of()
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            assert torch.equal(run(graphs, cache, [2, 1]), run(parts, cache_of(), [2, 1]))
    assert [log["reason"] for log in logs] == ["operation not permitted when stream is capturing"]
    assert (graphs.alive, graphs.form) == (False, "layers")


def test_graphs_that_give_something_else_are_not_used(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(work: Work) -> tuple[Tensors, Replay]:
        return work(), lambda: None

    def fails(_: Work) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nat ...")

    assert started(module) == ("graphs", None)
    assert started(module, ranks=2) == (
        "layers",
        "several ranks are not recorded: what one GPU holds may be faster on one",
    )
    capped = [Scoring(1.0), Scoring(1.0, softcap=30.0)]
    assert started(module, scorings=capped) == (
        "layers",
        "FlashAttention knows no soft cap: sequences attend one by one",
    )
    monkeypatch.setattr(CAPTURE, lambda _: stale)
    assert started(module) == ("layers", "as graphs it gives something else")
    monkeypatch.setattr(CAPTURE, lambda _: fails)
    assert started(module) == ("layers", "operation not permitted when stream is capturing")
    monkeypatch.undo()
    assert started(module) == ("layers", "FlashAttention is for GPUs, in bfloat16 or float16")


def started(module: Any, **asked: Any) -> tuple[str, str | None]:
    """The form of a decoder, and why it is no faster one, as the log says them."""
    with structlog.testing.capture_logs() as logs:
        body = select_backend(module, 3, 2, 32, **asked)
    (line,) = [log for log in logs if log["event"] == "decoder"]
    assert (line["log_level"], line["form"]) == ("info", body.form)
    assert line.get("sizes") == (len(body.sizes) if body.form == "graphs" else None)
    no_kernel, _, reason = line.get("reason", "").partition("; ")
    assert no_kernel == ("" if body.form == "graphs" else "no kernel takes it as a whole")
    return body.form, reason or None


class _Pinned(torch.Tensor):
    """Says that its memory is pinned, which takes a GPU."""

    def is_pinned(self, device: Any = None) -> bool:
        return True


def pinned(rows: torch.Tensor) -> torch.Tensor:
    return torch.Tensor._make_subclass(_Pinned, rows)


@pytest.mark.parametrize(
    ("work", "waits"),
    [
        (lambda rows: rows[rows > 0], True),
        (lambda rows: rows.nonzero(), True),
        (lambda rows: rows.sum().item(), True),
        (lambda rows: torch.nn.functional.one_hot(rows.long()), True),
        (lambda rows: rows.index_put_((rows > 0,), rows.sum()), True),
        (lambda rows: rows[rows.long()] + rows.cumsum(0), False),
        (lambda rows: rows.to("meta").cpu(), True),
        (lambda rows: rows.new_ones(3, device="meta").cpu(), True),
        (lambda rows: rows.new_ones(3, device="meta").to("cpu"), True),
        (lambda rows: rows.new_ones(3, device="meta").tolist(), True),
        (lambda rows: rows.copy_(rows.new_ones(3, device="meta")), True),
        (lambda rows: rows.new_ones(3, device="meta").copy_(rows), True),
        (lambda rows: rows.new_ones(3, device="meta").copy_(rows, True), True),
        (lambda rows: rows.new_ones(3, device="meta").copy_(pinned(rows), False), True),
        (lambda rows: rows.new_ones(3, device="meta").copy_(pinned(rows), True), False),
        (lambda rows: pinned(rows).to("meta", non_blocking=True), False),
        (lambda rows: rows.cpu() + rows.double().copy_(rows), False),
        (lambda rows: rows.new_ones(3, device="meta").double().to("meta"), False),
    ],
)
@torch.inference_mode()
def test_what_waits_for_its_device_is_found_before_it_is_recorded(work: Any, waits: bool) -> None:
    rows = torch.ones(3)
    with NoWaits():  # type: ignore[no-untyped-call]
        if waits:
            with pytest.raises(RuntimeError, match="waits for the device, and cannot be recorded"):
                work(rows)
        else:
            work(rows)


def test_a_decoder_that_waits_is_not_recorded(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Counting()
    monkeypatch.setattr(CAPTURE, lambda _: record)
    module.norm.register_forward_pre_hook(lambda _, args: (args[0] * float(args[0].max() > -1),))
    form, reason = started(module)
    assert (form, reason) == (
        "layers",
        "aten.item.default waits for the device, and cannot be recorded",
    )
    assert not record.sizes


@pytest.mark.parametrize("config", [LlamaConfig(**HEADS), Qwen3Config(**HEADS)])
@torch.inference_mode()
def test_a_forward_neither_waits_for_its_device_nor_mixes_it_with_others(config: Any) -> None:
    """On `meta`, which holds no numbers, whatever asks for one fails."""
    module = to_meta(decoder(config))
    graphs = CudaGraphBackend(TransformersBackend(module, 3), 64, eager_capture)
    cache = cache_of("meta")
    rows, segments = batch([3, 1, 5])
    rows = rows.to("meta")
    hidden = graphs.run(
        rows, AttentionMetadata(segments), cache, CaptureSpec((0, 2), cache.features, rows[2])
    )
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
    assert isinstance(target._body, CudaGraphBackend)
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


def test_a_target_proves_its_graphs_and_not_its_layers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What replays only batches of the self-check's rows wrongly is refused by it."""
    folder, replayed, wrong = write_tiny_llama(tmp_path), Counter[int](), False

    def record(work: Work) -> tuple[Tensors, Replay]:
        results, replay = eager_capture(work)

        def counted() -> None:
            replay()
            replayed[len(results[0])] += 1
            # `select_backend` compares smaller ones.
            if wrong and len(results[0]) > 4:
                results[0].mul_(1.1)

        return results, counted

    monkeypatch.setattr(CAPTURE, lambda _: record)
    assert load(folder).form == "graphs"
    assert sum(count for size, count in replayed.items() if size > 4) >= 3
    wrong = True
    with pytest.raises(TargetError, match="its states differ from those of its own forward"):
        load(folder)


@pytest.mark.parametrize(
    ("family", "form"), [("mistral", "graphs"), ("gpt_oss", "graphs"), ("gemma2", "layers")]
)
def test_windows_and_sinks_are_recorded_and_soft_caps_are_not(
    family: str, form: str, tmp_path: Path
) -> None:
    """Each proves as it is loaded that it attends as its own forward does."""
    target = load(write_tiny(tiny_config(family), tmp_path))
    assert target.form == form


def test_a_target_that_captures_other_layers_is_recorded_again(tmp_path: Path) -> None:
    target = load(write_tiny_llama(tmp_path))
    body, cache = target._body, target.reserve(4, target.feature_width)
    assert isinstance(body, CudaGraphBackend)
    parts = [_Rows(0, 0, (5, 6, 7)), _Rows(32, 0, (8,))]
    target.states(parts, cache, target.aux_layers)
    shapes = set(body._graphs[cache])
    assert {shape.layers for shape in shapes} == {target.aux_layers}
    target.capture((0, target.num_layers))
    assert {shape._replace(layers=target.aux_layers) for shape in shapes} < set(body._graphs[cache])


class _Rows(NamedTuple):
    slot: int
    position: int
    tokens: tuple[int, ...]
    prompt: bool = False


@torch.inference_mode()
def test_layers_take_the_tables_of_rope_as_they_are(module: Any) -> None:
    """On a GPU the rows of a table would be gathered again by every layer."""
    module = to_meta(module)
    cache, counted = cache_of("meta"), _Counted()
    rows, segments = batch([3, 1, 5])
    rows = rows.to("meta")
    kept = CaptureSpec((), cache.features, rows[2])
    with counted:
        TransformersBackend(module, 3).run(rows, AttentionMetadata(segments), cache, kept)
    assert counted.calls["aten::_flash_attention_forward"] == 3
    assert not counted.calls["aten::index"]


class _Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func._schema.name] += 1
        return func(*args, **(kwargs or {}))
