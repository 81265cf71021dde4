"""Sequences inherit what others have computed: who, how much, and who has to make room."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier_svc.cost_model.latency import StepLatency
from verifier_svc.kv.block_pool import BLOCK_SIZE, BlockPool
from verifier_svc.request.sequence import PrefixHit, Sequence
from verifier_svc.request.types import GenerationRequest, Sampling
from verifier_svc.scheduling.prefill_budget import PrefillBudget
from verifier_svc.scheduling.scheduler import ScheduledRows, Scheduler

SHARED = tuple(range(1000, 1100))


def sequence(seq: int, tokens: tuple[int, ...], max_tokens: int = 4, salt: str = "") -> Sequence:
    generation = GenerationRequest(
        "r", tokens, len(tokens), Sampling(max_tokens=max_tokens), cache_salt=salt
    )
    return Sequence(seq, generation, frozenset(), 10_000)


def scheduler(blocks: int = 100, token_budget: int = 500, **limits: Any) -> Scheduler:
    pace = PrefillBudget(StepLatency(), token_budget)
    return Scheduler(BlockPool(blocks), pace=pace, **{"max_sequences": 8, **limits})


def start(made: Scheduler, one: Sequence) -> Sequence:
    made.add(one)
    assert made.admit() == [one]
    return one


def step(made: Scheduler) -> list[ScheduledRows]:
    works = made.plan()
    for work in works:
        if work.draws:
            work.sequence.commit([7], 0)
        else:
            work.sequence.computed += len(work.tokens)
    return works


def finish(made: Scheduler, one: Sequence) -> None:
    while one.finish is None:
        step(made)
    made.remove([one.id])


def test_the_next_turn_inherits_all_full_blocks() -> None:
    made = scheduler()
    first = start(made, sequence(1, SHARED[:20], max_tokens=16))
    slot = first.slot
    finish(made, first)
    # 35 of 36 tokens were run: two full blocks.
    second = start(made, sequence(2, (*first.tokens, 50, 51)))
    assert second.inherited == PrefixHit(1, slot, 2 * BLOCK_SIZE)
    assert second.computed == second.usage.cached_prompt_tokens == 2 * BLOCK_SIZE
    assert second.slot != slot
    assert [(w.position, w.draws) for w in made.plan()] == [(32, 1)]


def test_the_last_token_is_run_even_where_it_is_cached() -> None:
    made = scheduler()
    finish(made, start(made, sequence(1, SHARED[:32])))
    again = start(made, sequence(2, SHARED[:32]))
    assert again.computed == BLOCK_SIZE


def test_running_sequences_are_inherited_from_too() -> None:
    made = scheduler()
    start(made, sequence(1, SHARED[:40], max_tokens=100))
    step(made)
    step(made)
    assert start(made, sequence(2, SHARED[:50])).computed == 2 * BLOCK_SIZE


def test_other_salts_failures_and_a_cache_that_is_off_share_nothing() -> None:
    made = scheduler()
    finish(made, start(made, sequence(1, SHARED[:40])))
    assert start(made, sequence(2, SHARED[:40], salt="mine")).inherited is None
    made = scheduler()
    start(made, sequence(1, SHARED[:40]))
    step(made)
    made.remove([1], failed=True)
    assert start(made, sequence(2, SHARED[:40])).inherited is None
    made = scheduler(keep=False)
    finish(made, start(made, sequence(1, SHARED[:40])))
    assert start(made, sequence(2, SHARED[:40])).inherited is None


def test_forgotten_prefixes_are_never_inherited() -> None:
    made = scheduler(blocks=20)
    finish(made, start(made, sequence(1, SHARED[:40])))
    running = start(made, sequence(2, (5, *SHARED[:40])))
    step(made)
    made.forget_prefixes()
    assert start(made, sequence(3, SHARED[:40])).inherited is None
    finish(made, running)
    assert start(made, sequence(4, (5, *SHARED[:40]))).inherited is None


def test_kept_blocks_make_room_the_least_recently_used_first() -> None:
    made = scheduler(blocks=8)
    lengths = (34, 50, 34, 34)
    prompts = [tuple(range(100 * i, 100 * i + n)) for i, n in enumerate(lengths, 1)]
    for seq in (0, 1):
        finish(made, start(made, sequence(seq + 1, prompts[seq])))
    used = start(made, sequence(3, prompts[0]))
    assert used.inherited == PrefixHit(1, 0, 32)
    finish(made, used)
    finish(made, start(made, sequence(4, prompts[2])))
    finish(made, start(made, sequence(5, prompts[3])))
    found = [made._holdings.find(sequence(9, prompt)) for prompt in prompts]
    assert found == [(1, 32), None, (4, 32), (5, 32)]


def test_a_sequence_never_waits_for_the_sake_of_its_own_prefix() -> None:
    made = scheduler(blocks=6)
    first = start(made, sequence(1, SHARED[:60]))
    finish(made, first)
    second = start(made, sequence(2, (*first.tokens, 50)))
    assert second.inherited is None
    finish(made, second)


def test_a_text_is_kept_once() -> None:
    pool = BlockPool(20)
    made = Scheduler(pool, max_sequences=8, pace=PrefillBudget(StepLatency(), 500))
    for seq in range(1, 5):
        finish(made, start(made, sequence(seq, SHARED[:40], max_tokens=1)))
        assert pool.free_blocks == 18
    finish(made, start(made, sequence(5, SHARED[:60], max_tokens=1)))
    assert pool.free_blocks == 17


def test_identical_prompts_run_one_prefill() -> None:
    made = scheduler(token_budget=20)
    everyone = [sequence(i, SHARED[:60], max_tokens=40) for i in range(1, 6)]
    for one in everyone:
        made.add(one)
    rows = 0
    while not all(one.decoding for one in everyone):
        made.admit()
        rows += sum(len(w.tokens) for w in step(made) if len(w.tokens) != w.draws)
    # The first runs all of it, the others what is behind the last full block.
    assert rows == 60 + 4 * (60 - 3 * BLOCK_SIZE)
    assert [one.computed for one in everyone] == [60 + len(one) - 61 for one in everyone]


def test_who_waits_for_a_prefix_gets_it_as_soon_as_it_is_there() -> None:
    """And holds up nobody behind, nor anybody that shares no more than a block."""
    made = scheduler(token_budget=20)
    first, second = sequence(1, SHARED[:100]), sequence(2, (*SHARED[:40], 5, 6))
    stranger, near = sequence(3, (9, 8, 7)), sequence(4, SHARED[:20])
    for one in (first, second, stranger, near):
        made.add(one)
    assert made.admit() == [first, stranger, near]
    step(made)
    assert made.admit() == []
    assert (made.waiting, first.computed) == (1, 20)
    step(made)
    assert made.admit() == [second]
    assert first.computed == 40 < len(first.tokens)
    assert second.inherited == PrefixHit(1, first.slot, 2 * BLOCK_SIZE)


@pytest.mark.parametrize("end", ["cancelled", "failed", "forgotten"])
def test_nobody_waits_for_a_prefix_that_will_not_come(end: str) -> None:
    made = scheduler(token_budget=20)
    first, second = sequence(1, SHARED[:60]), sequence(2, SHARED[:60])
    made.add(first)
    made.add(second)
    assert made.admit() == [first]
    if end == "forgotten":
        made.forget_prefixes()
    else:
        made.remove([1], failed=end == "failed")
    assert made.admit() == [second]
    assert second.inherited is None


def test_a_waiting_sequence_may_be_dropped_and_other_salts_do_not_wait() -> None:
    made = scheduler(token_budget=20)
    first, second = sequence(1, SHARED[:60]), sequence(2, SHARED[:60])
    other = sequence(3, SHARED[:60], salt="mine")
    for one in (first, second, other):
        made.add(one)
    assert made.admit() == [first, other]
    assert made.remove([2]) == [second]
    made = scheduler(token_budget=20, keep=False)
    for seq in (1, 2):
        made.add(sequence(seq, SHARED[:60]))
    assert len(made.admit()) == 2, "nothing is shared"


TURNS = st.lists(
    st.tuples(
        st.integers(0, 3), st.integers(1, 70), st.integers(1, 30), st.booleans(), st.booleans()
    ),
    min_size=1,
    max_size=14,
)


@given(TURNS, st.integers(7, 30), st.integers(1, 3), st.integers(5, 60))
@settings(deadline=None)
def test_what_is_inherited_is_what_would_have_been_computed(
    turns: list[tuple[int, int, int, bool, bool]], blocks: int, max_sequences: int, budget: int
) -> None:
    """The memory is a list that holds, of each position, the whole text up to it."""
    made = scheduler(blocks=blocks, max_sequences=max_sequences, token_budget=budget)
    memory: list[tuple[int, ...]] = [()] * (blocks * BLOCK_SIZE)
    texts = [SHARED[:20], SHARED[:40], (1, *SHARED), (2,)]
    waiting = []
    for seq, (text, cut, output, cancelled, failed) in enumerate(turns, 1):
        prompt = (*texts[text][:cut], *([] if output % 2 else [text]))
        waiting.append((sequence(seq, prompt, output), cancelled, failed))
    fates = {one.id: fate for one, *fate in waiting}
    for one, *_ in waiting:
        if made.fits(one.limit):
            made.add(one)
    for _ in range(3000):
        for one in made.admit():
            if (prefix := one.inherited) is not None:
                source = range(prefix.slot, prefix.slot + prefix.count)
                for at, slot in enumerate(source):
                    memory[one.slot + at] = memory[slot]
        works = made.plan()
        for work in works:
            for at, _ in enumerate(work.tokens, work.position):
                memory[work.slot + at] = tuple(work.sequence.tokens[: at + 1])
            one = work.sequence
            for at in range(work.position + len(work.tokens)):
                assert memory[work.slot + at] == tuple(one.tokens[: at + 1])
            if work.draws:
                one.commit([7], 0)
            else:
                one.computed += len(work.tokens)
            cancelled, failed = fates[one.id]
            if one.finish is not None or (cancelled and len(one) % 3 == 0):
                made.remove([one.id], failed=failed)
        if not works:
            break
    assert not made.running
    assert not made.waiting
