"""What KV memory and lengths a start takes, by device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from structlog.testing import capture_logs

from specserve.settings import StartError
from verifier_svc import build
from verifier_svc.build import automatic_memory, build_cache
from verifier_svc.kv.kv_cache import KVCache
from verifier_svc.settings import VerifierSettings

GPU, CPU = torch.device("cuda", 1), torch.device("cpu")
GIB = 1 << 30
# An 8B's: 128 KiB of KV and 24 KiB of features.
SLOT = 152 << 10


def target(device: torch.device = GPU, most: int = 131072) -> Any:
    """A target of an 8B's shape, which reserves nothing."""
    reserved: list[tuple[int, int]] = []
    return SimpleNamespace(
        num_layers=32, kv_heads=8, head_dim=128, feature_width=12288, dtype=torch.bfloat16,
        max_position=most, device=device, reserved=reserved,
        reserve=lambda blocks, width: reserved.append((blocks, width)),
    )  # fmt: skip


def settings(device: str = "cuda:1", **changes: Any) -> VerifierSettings:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in changes.items()]
    return VerifierSettings.read("v", ["--target", "t", "--device", device, *flags], {})


@pytest.fixture(autouse=True)
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs with 124 GiB left on the second."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    free = {1: 124 * GIB}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device.index], 140 * GIB))


def test_a_gpu_gives_most_of_what_is_left_after_loading() -> None:
    assert automatic_memory(GPU) == int(0.9 * 124 * GIB) - 4 * GIB
    assert automatic_memory(CPU) == 2 * GIB


def test_an_8b_starts_at_its_full_length_by_itself() -> None:
    made = target()
    with capture_logs() as logs:
        _, length = build_cache(settings(), made)
    assert length == 131072
    assert logs == []
    ((blocks, width),) = made.reserved
    tokens = blocks * 16
    assert tokens * SLOT <= 0.9 * 124 * GIB - 4 * GIB < (tokens + 16) * SLOT
    assert 700_000 < tokens < 800_000
    assert width == 12288


def test_the_length_is_what_fits_where_none_was_asked_for() -> None:
    made = target(CPU)
    with capture_logs() as logs:
        _, length = build_cache(settings("cpu"), made)
    assert length == 2 * GIB // (16 * SLOT) * 16 == 13792
    assert made.reserved == [(862, 12288)]
    (said,) = logs
    assert said["log_level"] == "warning"
    assert (said["max_model_len"], said["target"]) == (13792, 131072)


def test_no_more_is_taken_than_sequences_can_use() -> None:
    made = target(CPU, most=64)
    assert build_cache(settings("cpu"), made)[1] == 64
    assert build_cache(settings("cpu", max_sequences=3, max_model_len=33), made)[1] == 33
    assert [blocks for blocks, _ in made.reserved] == [32 * 4, 3 * 3]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"max_model_len": 200000}, r"^--max-model-len: 200000 is over the target's limit of 131"),
        (
            {"max_model_len": 20000, "kv_memory": "2GiB"},
            r"^--kv-memory: a sequence of 20000 tokens takes 2968 MiB; give more, or lower --max",
        ),
        ({"kv_memory": "2MiB"}, r"^--kv-memory: a sequence of 1 tokens takes 2 MiB; give more"),
    ],
)
def test_what_cannot_be_had_is_a_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StartError, match=sentence):
        build_cache(settings(**given), target())


def test_a_gpu_that_is_full_says_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * GIB, 24 * GIB))
    with pytest.raises(StartError, match=r"^--kv-memory: 3072 MiB are free on cuda:1 beside the"):
        automatic_memory(GPU)


def test_too_much_for_a_gpu_is_refused_before_and_while_it_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shape: dict[str, Any] = {
        "layers": 1, "kv_heads": 1, "head_dim": 8, "feature_width": 8, "dtype": torch.float32,
    }  # fmt: skip
    with pytest.raises(StartError, match="were asked for on cuda:1, where 126976 MiB are free"):
        KVCache(blocks=1 << 27, device=GPU, **shape)

    def full(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(StartError, match="--kv-memory: 1 MiB were asked for on cuda:1"):
        KVCache(blocks=1 << 10, device=GPU, **shape)


def test_a_warm_up_without_room_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", used.append)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(build, "warm_up", full)
    with pytest.raises(StartError, match=r"^--kv-memory: what it leaves free on cuda:1 is too"):
        build.build_engine(settings(), target(), None, lambda box: None, cast("Any", None))
    assert used == [GPU]


def test_numbers_follow_the_device_unless_they_are_given() -> None:
    for device, numbers in (("cpu", (32, 512)), ("cuda", (128, 2048)), ("cuda:1", (128, 2048))):
        read = settings(device)
        assert (read.sequences, read.budget) == numbers
    given = settings(max_sequences=7, token_budget=64, kv_memory="auto")
    assert (given.sequences, given.budget, given.kv_memory) == (7, 64, None)


def test_features_of_another_width_take_the_place_of_those_before() -> None:
    cache = KVCache(
        blocks=2, layers=1, kv_heads=1, head_dim=8, feature_width=8, dtype=torch.float32,
        device=CPU,
    )  # fmt: skip
    kept = cache.features
    cache.resize_features(8)
    assert cache.features is kept
    cache.resize_features(24)
    assert cache.features.shape == (32, 24)
