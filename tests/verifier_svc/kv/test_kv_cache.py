"""What a KV cache takes of the machine's memory, and when."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from specserve.settings import StartError
from verifier_svc.kv.block_pool import BLOCK_SIZE
from verifier_svc.kv.kv_cache import KVCache

CPU = torch.device("cpu")


def cache(blocks: int, device: torch.device = CPU) -> KVCache:
    return KVCache(
        blocks=blocks,
        layers=4,
        kv_heads=2,
        head_dim=64,
        feature_width=256,
        dtype=torch.bfloat16,
        device=device,
    )


def resident() -> int:
    """Bytes of this process that lie in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_memory_is_taken_as_slots_are_written() -> None:
    before = resident()
    kept = cache(1 << 15)
    size = sum(pool.nbytes for pool in (*kept.keys, *kept.values, kept.features))
    assert size > 1 << 30
    # Masked slots are read.
    assert not kept.keys[3][:BLOCK_SIZE].any()
    assert not kept.values[0][kept.spare].any()
    assert not kept.features[-1].any()
    assert resident() - before < 32 << 20
    written = 64 << 20
    kept.features[: written // kept.features[0].nbytes] = 1
    assert resident() - before >= 0.9 * written
    del kept
    assert resident() - before < 32 << 20


def test_every_pool_is_written_apart() -> None:
    kept = cache(2)
    pools = (*kept.keys, *kept.values, kept.features)
    for number, pool in enumerate(pools, start=1):
        pool[:] = number
    assert all(bool((pool == number).all()) for number, pool in enumerate(pools, start=1))
    kept.copy(0, BLOCK_SIZE, BLOCK_SIZE)
    kept.clear(0, BLOCK_SIZE)
    assert not any(pool[:BLOCK_SIZE].any() for pool in (*kept.keys, *kept.values))
    assert all(pool[BLOCK_SIZE:].all() for pool in pools)


def test_more_than_the_machine_has_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1024}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    with pytest.raises(StartError, match="--kv-memory: 320 MiB are more than the 4 MiB of"):
        cache(8192)
    cache(8192, torch.device("meta"))
