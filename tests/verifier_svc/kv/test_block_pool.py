"""Accounting of KV blocks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from verifier_svc.kv.block_pool import BLOCK_SIZE, BlockPool, BlockRange, blocks_for


@given(st.integers(0, 10_000))
def test_blocks_hold_their_tokens_with_less_than_a_block_to_spare(tokens: int) -> None:
    assert 0 <= blocks_for(tokens) * BLOCK_SIZE - tokens < BLOCK_SIZE


def test_a_run_starts_at_the_slot_of_its_first_block() -> None:
    assert BlockRange(3, 2).slot == 3 * BLOCK_SIZE


def test_runs_are_adjacent_even_where_enough_blocks_are_free_in_pieces() -> None:
    pool = BlockPool(6)
    runs = [pool.take(2) for _ in range(3)]
    assert None not in runs
    assert runs[0] is not None
    assert runs[2] is not None
    pool.give(runs[0])
    pool.give(runs[2])
    assert pool.free_blocks == 4
    assert pool.take(3) is None
    assert pool.take(2) == BlockRange(0, 2), "first fit"


@pytest.mark.parametrize(
    "extent", [BlockRange(0, 1), BlockRange(1, 2), BlockRange(3, 3), BlockRange(5, 1)]
)
def test_free_blocks_cannot_be_given(extent: BlockRange) -> None:
    pool = BlockPool(6)
    taken = pool.take(5)
    assert taken is not None
    pool.give(BlockRange(0, 2))
    with pytest.raises(ValueError, match="overlaps free blocks"):
        pool.give(extent)


class Pool(RuleBasedStateMachine):
    """Runs taken and given in any order."""

    @initialize(blocks=st.integers(1, 40))
    def open(self, blocks: int) -> None:
        self.pool = BlockPool(blocks)
        self.taken: list[BlockRange] = []

    @rule(count=st.integers(1, 12))
    def take(self, count: int) -> None:
        extent = self.pool.take(count)
        owned = {b for e in self.taken for b in range(e.start, e.start + e.count)}
        if extent is not None:
            assert extent.count == count
            run = set(range(extent.start, extent.start + count))
            assert not run & owned
            assert run <= set(range(self.pool.blocks))
            self.taken.append(extent)
        else:
            free = [b not in owned for b in range(self.pool.blocks)]
            longest = max(map(len, "".join(".X"[f] for f in free).split(".")), default=0)
            assert longest < count, "a run that fits is always found"

    @rule(index=st.integers(0, 99))
    def give(self, index: int) -> None:
        if self.taken:
            self.pool.give(self.taken.pop(index % len(self.taken)))

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "pool"):
            assert self.pool.free_blocks + sum(e.count for e in self.taken) == self.pool.blocks

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            for extent in self.taken:
                self.pool.give(extent)
            assert self.pool.take(self.pool.blocks) == BlockRange(0, self.pool.blocks)


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
