"""Admission and the rows of a step."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from verifier_svc.cost_model.latency import StepLatency
from verifier_svc.kv.block_pool import BLOCK_SIZE, BlockPool
from verifier_svc.request.sequence import Sequence
from verifier_svc.request.types import GenerationRequest, Sampling
from verifier_svc.scheduling.prefill_budget import PrefillBudget
from verifier_svc.scheduling.scheduler import ScheduledRows, Scheduler


def sequence(seq: int, prompt: int, max_tokens: int = 8) -> Sequence:
    tokens = tuple(range(100 * seq, 100 * seq + prompt))
    generation = GenerationRequest("r", tokens, prompt, Sampling(max_tokens=max_tokens))
    return Sequence(seq, generation, frozenset(), 10_000)


def scheduler(blocks: int = 100, token_budget: int = 10, **limits: Any) -> Scheduler:
    pace = PrefillBudget(StepLatency(), token_budget)
    return Scheduler(BlockPool(blocks), pace=pace, **{"max_sequences": 8, **limits})


def admitted(made: Scheduler, *sequences: Sequence) -> Scheduler:
    for one in sequences:
        made.add(one)
    assert made.admit() == list(sequences)
    return made


def run(works: list[ScheduledRows]) -> None:
    """What the engine does with a plan: every sequence draws token 7 and rejects its draft."""
    for work in works:
        if work.draws:
            work.sequence.commit([7], 0)
        else:
            work.sequence.computed += len(work.tokens)


def test_blocks_cover_the_whole_generation_and_no_two_overlap() -> None:
    made = scheduler(max_sequences=3)
    first, second, third = (sequence(i, 20 * i + 1, 30) for i in range(3))
    admitted(made, first, second, third)
    slots = [s.extent for s in (first, second, third)]
    used = 0
    for one, extent in zip((first, second, third), slots, strict=True):
        assert extent is not None
        assert extent.count * BLOCK_SIZE >= one.limit
        assert extent.start >= used
        used = extent.start + extent.count


def test_arrivals_wait_in_order_for_blocks() -> None:
    made = scheduler(blocks=4)
    large, larger, small = sequence(1, 40, 8), sequence(2, 40, 8), sequence(3, 1, 8)
    for one in (large, larger, small):
        made.add(one)
    assert made.admit() == [large]
    assert made.waiting == 2, "the small one does not overtake: nobody starves"
    assert made.admit() == []
    assert made.remove([1]) == [large]
    assert made.admit() == [larger, small]


def test_no_more_than_max_sequences_run() -> None:
    made = scheduler(max_sequences=2)
    for i in range(3):
        made.add(sequence(i, 1))
    assert [s.id for s in made.admit()] == [0, 1]
    made.remove([0])
    assert [s.id for s in made.admit()] == [2]
    assert [s.id for s in made.running] == [1, 2]


def test_prompts_are_cut_into_chunks_that_fill_the_budget() -> None:
    long, short = sequence(1, 24), sequence(2, 5)
    made = admitted(scheduler(), long, short)
    plans = []
    for _ in range(3):
        works = made.plan()
        plans.append([(w.sequence.id, w.position, len(w.tokens), w.draws) for w in works])
        run(works)
    assert plans == [
        [(1, 0, 10, 0)],
        [(1, 10, 10, 0)],
        [(1, 20, 4, 1), (2, 0, 5, 1)],
    ]
    assert [len(w.tokens) for w in made.plan()] == [1, 1], "both decode now"


def test_decoding_sequences_come_first_and_draw_from_their_drafts_too() -> None:
    old, new = sequence(1, 3), sequence(2, 30)
    made = admitted(scheduler(), old, new)
    run(made.plan())
    old.draft = (8, 9)
    first, second = made.plan()
    assert first == ScheduledRows(old, 3, (7, 8, 9), 3)
    assert (second.sequence, second.position, len(second.tokens), second.draws) == (new, 7, 8, 0)


def test_decoding_and_prompts_go_on_where_decoding_takes_the_whole_budget() -> None:
    many = [sequence(i, 1) for i in range(4)]
    made = admitted(scheduler(token_budget=2), *many, sequence(9, 8))
    works = made.plan()
    assert [w.sequence for w in works[:4]] == many
    assert [len(w.tokens) for w in works] == [1, 1, 1, 1, 2]
    made.remove(range(4))
    assert [len(w.tokens) for w in made.plan()] == [2]


def test_remove_gives_blocks_back_and_skips_the_unknown() -> None:
    pool = BlockPool(10)
    made = Scheduler(pool, max_sequences=1, pace=PrefillBudget(StepLatency(), 10), keep=False)
    running, waiting = sequence(1, 5), sequence(2, 5)
    made.add(running)
    made.add(waiting)
    made.admit()
    assert set(made.remove([1, 2, 77])) == {running, waiting}
    assert running.extent is None
    assert pool.free_blocks == 10
    assert (made.waiting, made.running) == (0, ())
    assert made.remove([1, 2]) == []
    assert made.plan() == []


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), min_size=1, max_size=8),
    st.integers(1, 40),
    st.integers(8, 30),
    st.integers(1, 4),
)
def test_every_sequence_runs_every_position_once_and_in_order(
    shapes: list[tuple[int, int]], budget: int, blocks: int, max_sequences: int
) -> None:
    made = scheduler(blocks=blocks, token_budget=budget, max_sequences=max_sequences)
    everyone = [sequence(i, prompt, output) for i, (prompt, output) in enumerate(shapes)]
    ran: dict[int, list[int]] = {s.id: [] for s in everyone}
    for one in everyone:
        made.add(one)
    for _ in range(2000):
        made.admit()
        works = made.plan()
        assert works or not (made.running or made.waiting), "there is always something to run"
        prefilled = sum(len(w.tokens) for w in works if len(w.tokens) != w.draws)
        assert prefilled <= budget
        for work in works:
            assert list(work.tokens) == work.sequence.tokens[work.position :][: len(work.tokens)]
            ran[work.sequence.id] += range(work.position, work.position + len(work.tokens))
        run(works)
        made.remove([s.id for s in made.running if s.finish])
        if not works:
            break
    for one in everyone:
        assert one.finish is not None
        assert ran[one.id] == list(range(len(one) - 1))
