import itertools
import os
import random
from pathlib import Path

import pytest
import torch

from drafter_svc.inference.kv_cache import CacheFullError, KVCache, Slab

ROW_BYTES = 2 * 2 * 4 * 4


def cache_of(rows: int) -> KVCache:
    return KVCache(1, 2, 4, torch.float32, torch.device("cpu"), rows * ROW_BYTES + ROW_BYTES // 2)


def fill(cache: KVCache, slot: Slab, mark: int) -> None:
    """Marks every row of a slot, the keys apart from the values."""
    rows = torch.arange(slot.rows)[:, None, None] + 1000.0 * mark
    cache.keys[0][slot.start : slot.start + slot.rows] = rows
    cache.values[0][slot.start : slot.start + slot.rows] = -rows


def held(cache: KVCache, slot: Slab, mark: int, rows: int = 64) -> bool:
    wanted = (torch.arange(rows)[:, None, None] + 1000.0 * mark).expand(rows, 2, 4)
    reach = slice(slot.start, slot.start + rows)
    return torch.equal(cache.keys[0][reach], wanted) and torch.equal(
        cache.values[0][reach], -wanted
    )


def test_growth_keeps_what_is_held() -> None:
    cache = cache_of(1000)
    slot, _ = cache.reserve((0, 1), 10, set())
    fill(cache, slot, 10)
    grown, evicted = cache.reserve((0, 1), 200, set())
    assert grown is slot
    assert not evicted
    assert slot.rows >= 200
    assert held(cache, slot, 10)
    assert cache.bytes_used == slot.rows * ROW_BYTES


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
    assert cache.reserve((0, 1), 100, set())[0].rows == 100


def test_freeing_makes_room_and_may_be_repeated() -> None:
    cache = cache_of(64)
    cache.reserve((0, 1), 64, set())
    cache.free((0, 1))
    cache.free((0, 1))
    assert cache.bytes_used == 0
    assert cache.reserve((0, 2), 64, {(0, 1)})[1] == []


def test_gaps_are_closed_where_rows_are_free_but_not_in_one_piece() -> None:
    cache = cache_of(320)
    slots = [cache.reserve((0, seq), 64, set())[0] for seq in range(5)]
    for seq, slot in enumerate(slots):
        fill(cache, slot, seq)
    cache.free((0, 0))
    cache.free((0, 3))
    # 128 rows are free, in two pieces: one sequence grows into both.
    grown, evicted = cache.reserve((0, 2), 192, {(0, 1), (0, 4)})
    assert (grown.rows, evicted) == (192, [])
    for seq in (1, 2, 4):
        assert held(cache, slots[seq], seq)
    taken = sorted((slots[seq].start, slots[seq].rows) for seq in (1, 2, 4))
    assert sum(rows for _, rows in taken) == 320
    assert all(a + n == b for (a, n), (b, _) in itertools.pairwise(taken))


def test_slots_never_overlap_and_keep_their_rows() -> None:
    cache = cache_of(1000)
    chance = random.Random(0)
    marks: dict[int, tuple[Slab, int, int]] = {}
    for mark in range(200):
        seq = chance.randrange(8)
        if chance.random() < 0.2:
            cache.free((0, seq))
            marks.pop(seq, None)
            continue
        before = marks.get(seq)
        slot, evicted = cache.reserve((0, seq), chance.randrange(1, 400), set())
        for _, gone in evicted:
            marks.pop(gone)
        for other, known, rows in marks.values():
            assert held(cache, other, known, rows)
        assert before is None or slot is before[0]
        fill(cache, slot, mark)
        marks[seq] = (slot, mark, slot.rows)


def test_memory_is_taken_as_rows_are_written() -> None:
    def resident() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    cache = KVCache(2, 2, 64, torch.float32, torch.device("cpu"), 1 << 30)
    slot, _ = cache.reserve((0, 1), cache.budget_rows // 2, set())
    assert resident() - before < 32 << 20
    cache.keys[0][: 1 << 16] = 1
    assert resident() - before > 16 << 20
    assert cache.bytes_used > 256 << 20
    assert slot.rows >= cache.budget_rows // 2
