"""The device of a service: kernels, the current one, and memory."""

from __future__ import annotations

import pytest
import torch

import speckernels as kernels
from speckernels import device
from specserve.settings import StartError

GPU, OTHER, CPU = torch.device("cuda"), torch.device("cuda", 1), torch.device("cpu")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs with 100 MiB each."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100 << 20, 1 << 40))


def test_kernels_are_those_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(kernels, "load_kernels", lambda *given: asked.append(given))
    device.prepare(GPU, "on", "auto")
    assert not asked
    device.prepare(CPU, "on", "avx2")
    assert asked == [("on", "avx2")]


def test_a_gpu_with_a_number_becomes_the_threads_own(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    for each in (CPU, GPU, OTHER, torch.device("meta")):
        device.use(each)
    assert used == [OTHER]


@pytest.mark.usefixtures("free")
def test_free_memory_is_that_of_a_gpu() -> None:
    assert device.free_memory(OTHER) == 100 << 20
    assert device.free_memory(CPU) is None


@pytest.mark.usefixtures("free")
def test_too_much_is_one_sentence_with_both_figures() -> None:
    sentence = (
        "^--kv-memory: 120 MiB were asked for on cuda:1, where 100 MiB are free; give less\\.$"
    )
    with pytest.raises(StartError, match=sentence), device.taking("--kv-memory", 120 << 20, OTHER):
        pytest.fail("not to be tried")
    taken = []
    with device.taking("--kv-memory", 100 << 20, OTHER):
        taken.append("all of it")
    with device.taking("--kv-memory", 1 << 50, CPU):
        taken.append("what a CPU may not have")
    assert len(taken) == 2


@pytest.mark.usefixtures("free")
def test_what_fails_all_the_same_is_a_sentence_too() -> None:
    with (
        pytest.raises(StartError, match="80 MiB were asked for on cuda, where 100 MiB are free"),
        device.taking("--kv-memory", 80 << 20, GPU),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
