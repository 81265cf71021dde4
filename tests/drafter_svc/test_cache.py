import pytest
import torch

from drafter_svc.cache import CacheFullError, KvCache

ROW_BYTES = 2 * 2 * 4 * 4


def cache_of(rows: int) -> KvCache:
    return KvCache(2, 4, torch.float32, torch.device("cpu"), rows * ROW_BYTES + ROW_BYTES // 2)


def test_growth_keeps_what_is_held() -> None:
    cache = cache_of(1000)
    slot, _ = cache.reserve((0, 1), 10, set())
    slot.kv[:10] = torch.arange(10.0)[:, None, None]
    grown, evicted = cache.reserve((0, 1), 200, set())
    assert grown is slot
    assert not evicted
    assert len(slot.kv) >= 200
    assert slot.kv[:10, 0, 0].tolist() == list(range(10))
    assert cache.bytes_used == len(slot.kv) * ROW_BYTES


def test_the_least_recently_used_goes_first() -> None:
    cache = cache_of(256)
    for seq in range(4):
        cache.reserve((0, seq), 64, set())
    cache.reserve((0, 0), 64, set())
    assert cache.reserve((0, 9), 64, set())[1] == [(0, 1)]
    assert cache.reserve((0, 8), 100, set())[1] == [(0, 2), (0, 3)]
    assert cache.bytes_used <= 256 * ROW_BYTES


def test_nobody_in_use_is_evicted() -> None:
    cache = cache_of(192)
    for seq in range(3):
        cache.reserve((0, seq), 64, set())
    assert cache.reserve((0, 3), 64, {(0, 0), (0, 1)})[1] == [(0, 2)]
    before = cache.bytes_used
    with pytest.raises(CacheFullError):
        cache.reserve((0, 4), 64, {(0, 0), (0, 1), (0, 3)})
    assert cache.bytes_used == before
    assert len(cache) == 3


def test_a_sequence_that_cannot_grow_keeps_its_rows() -> None:
    cache = cache_of(128)
    slot, _ = cache.reserve((0, 1), 64, set())
    cache.reserve((0, 2), 64, set())
    with pytest.raises(CacheFullError):
        cache.reserve((0, 1), 65, {(0, 2)})
    assert cache.reserve((0, 1), 64, set()) == (slot, [])
    # Alone it may take what there is, without doubling.
    assert len(cache.reserve((0, 1), 100, set())[0].kv) == 100


def test_freeing_makes_room_and_may_be_repeated() -> None:
    cache = cache_of(64)
    cache.reserve((0, 1), 64, set())
    cache.free((0, 1))
    cache.free((0, 1))
    assert cache.bytes_used == 0
    assert cache.reserve((0, 2), 64, {(0, 1)})[1] == []
