"""States of documents in the engine: what is computed, in which memory, and who is next."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speckernels.tensor_codec import unpack
from tests.support.running_engine import RunningEngine, reference_of, target_of
from tests.support.scripted_drafter import ScriptedDrafter, good, welcome_for
from verifier_svc.hidden_states.runner import BUSY_ROWS, FeatureQueue, FeatureRunner
from verifier_svc.kv.block_pool import blocks_for
from verifier_svc.request.documents import FeatureRequest, FeatureRows
from verifier_svc.request.types import Event, Failed

VOCAB = 97


def tokens_of(length: int, seed: int = 0) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return tuple(torch.randint(2, VOCAB, (length,), generator=generator).tolist())


def runner_for(folder: Path, **options: Any) -> FeatureRunner:
    return FeatureRunner(target_of(folder), **{"max_tokens": 256, "budget": 100, **options})


def drain(runner: FeatureRunner, *, busy: bool = False) -> list[tuple[int, Event]]:
    events = []
    while runner:
        events += runner.step(busy=busy)
    return events


def joined(
    events: list[tuple[int, Event]], client: int, document: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and final states of one document; checks that its rows came in order."""
    features, final = [], []
    at = 0
    for owner, event in events:
        if owner == client and isinstance(event, FeatureRows) and event.document == document:
            assert event.start == at
            features.append(unpack(event.features, "features"))
            final.append(unpack(event.final, "final"))
            assert len(features[-1]) == len(final[-1]) == event.count
            at += event.count
    return torch.cat(features), torch.cat(final)


def reference(
    folder: Path, tokens: tuple[int, ...], layers: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    body: Any = reference_of(folder).model
    last: list[torch.Tensor] = []
    hook = body.norm.register_forward_pre_hook(lambda _, args: last.append(args[0]))
    with torch.inference_mode():
        out = body(torch.tensor([tokens]), output_hidden_states=True)
    hook.remove()
    states = [*out.hidden_states[:-1], *last]  # transformers gives the last one after the norm
    return torch.cat([states[i][0] for i in layers], -1), out.last_hidden_state[0]


def test_states_are_those_of_transformers_for_each_clients_layers(tiny_llama: Path) -> None:
    runner = runner_for(tiny_llama)
    wishes = [
        FeatureRequest(1, 7, tokens_of(1), (0, 2, 3)),
        FeatureRequest(1, 8, tokens_of(33), (0, 2, 3)),
        FeatureRequest(2, 7, tokens_of(64), (3, 1)),
        FeatureRequest(3, 0, tokens_of(150), (2,)),
        FeatureRequest(4, 0, tokens_of(70), (1, 2, 4)),
        FeatureRequest(2, 9, tokens_of(256), (3, 1)),
    ]
    for wish in wishes:
        runner.add(wish)
    events = drain(runner)
    for wish in wishes:
        features, final = joined(events, wish.client, wish.document)
        wanted, wanted_final = reference(tiny_llama, wish.tokens, wish.aux_layers)
        assert features.dtype == torch.float32
        torch.testing.assert_close(features, wanted, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(final, wanted_final, atol=1e-4, rtol=1e-4)
    assert runner.queue.pool.free_blocks == runner.queue.pool.blocks


def test_messages_stay_under_the_limit(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "verifier_svc.hidden_states.runner._MESSAGE_BYTES", 5 * (3 + 1) * 32 * 4 + 7
    )
    runner = runner_for(tiny_llama)
    runner.add(FeatureRequest(1, 1, tokens_of(33), (0, 2, 3)))
    events = drain(runner)
    assert [event.count for _, event in events if isinstance(event, FeatureRows)] == [5] * 6 + [3]
    features, _ = joined(events, 1, 1)
    wanted, _ = reference(tiny_llama, tokens_of(33), (0, 2, 3))
    torch.testing.assert_close(features, wanted, atol=1e-4, rtol=1e-4)


def test_features_are_what_the_drafter_is_sent_for_the_same_tokens(tiny_llama: Path) -> None:
    target = target_of(tiny_llama)
    drafter = ScriptedDrafter(welcome_for(target), good([]))
    with RunningEngine(tiny_llama, drafter, "--draft-length", "3") as engine:
        seq = engine.submit(tokens_of(40), max_tokens=30, ignore_eos=True)
        text = engine.finish(seq)[0].text
    _, rows = drafter.seen[seq]
    runner = runner_for(tiny_llama)
    runner.add(FeatureRequest(1, 1, tuple(text), target.aux_layers))
    features, _ = joined(drain(runner), 1, 1)
    # All but the last entries, which no draft was asked after.
    sent = torch.stack(list(rows))
    assert len(sent) >= 60
    torch.testing.assert_close(features[: len(sent)], sent, atol=1e-4, rtol=1e-4)
    # The prompt ran as one chunk in both places: bit for bit the same.
    whole = runner_for(tiny_llama)
    whole.add(FeatureRequest(1, 1, tokens_of(40), target.aux_layers))
    prompt, _ = joined(drain(whole), 1, 1)
    assert torch.equal(prompt[:39], sent[:39])


def test_documents_of_the_running_engine_leave_generations_alone(tiny_llama: Path) -> None:
    with RunningEngine(tiny_llama) as engine:
        alone = engine.generate(tokens_of(20), max_tokens=40, ignore_eos=True).text
        for number in range(20):
            engine.engine.post(FeatureRequest(1000, number, tokens_of(300, number), (0, 1)))
        engine.results[1000] = type(engine.results[1])(())
        seq = engine.submit(tokens_of(20), max_tokens=40, ignore_eos=True)
        assert engine.finish(seq)[0].text == alone
        rows = engine.results[1000].events
        assert sum(e.count for e in rows if isinstance(e, FeatureRows)) < 20 * 300, (
            "the generation did not wait for the documents"
        )
        while sum(e.count for e in rows if isinstance(e, FeatureRows)) < 20 * 300:
            engine.step()


def test_while_generations_run_steps_are_small_and_take_half_of_the_time(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.0, 0.3, 0.4, 0.59, 0.61, 0.7, 0.71, 0.72])
    runner = runner_for(tiny_llama, clock=lambda: next(times))
    runner.add(FeatureRequest(1, 1, tokens_of(250), (0,)))

    def rows(*, busy: bool) -> int:
        return sum(e.count for _, e in runner.step(busy=busy) if isinstance(e, FeatureRows))

    assert rows(busy=True) == BUSY_ROWS  # from 0.0 to 0.3: next at 0.6
    assert rows(busy=True) == 0  # at 0.4
    assert rows(busy=True) == 0  # at 0.59
    assert rows(busy=True) == BUSY_ROWS  # from 0.61 to 0.7
    assert rows(busy=False) == 100  # nobody waits: at once, and the whole budget


def test_a_dropped_client_gives_its_memory_back(tiny_llama: Path) -> None:
    runner = runner_for(tiny_llama)
    for number in range(5):
        runner.add(FeatureRequest(1, number, tokens_of(120), (0,)))
    runner.add(FeatureRequest(2, 0, tokens_of(30), (0,)))
    runner.step(busy=False)
    runner.drop(1)
    runner.drop(1)
    runner.drop(99)
    features, _ = joined(drain(runner), 2, 0)
    assert len(features) == 30
    assert runner.queue.pool.free_blocks == runner.queue.pool.blocks


def test_a_failed_batch_ends_the_calls_in_it_and_no_other(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = runner_for(tiny_llama)
    runner.add(FeatureRequest(1, 1, tokens_of(150), (0,)))
    runner.add(FeatureRequest(2, 1, tokens_of(30), (0,)))
    before = runner.step(busy=False)

    def fail(*_: object) -> None:
        raise RuntimeError("scripted")

    with monkeypatch.context() as patched:
        patched.setattr(target_of(tiny_llama), "states", fail)
        patched.setattr(runner, "_budget", 10)
        failed = runner.step(busy=False)
    assert [client for client, _ in failed] == [1]
    assert isinstance(failed[0][1], Failed)
    assert "scripted" not in failed[0][1].reason
    features, _ = joined(before + drain(runner), 2, 1)
    torch.testing.assert_close(
        features, reference(tiny_llama, tokens_of(30), (0,))[0], atol=1e-4, rtol=1e-4
    )
    assert runner.queue.pool.free_blocks == runner.queue.pool.blocks


def test_states_that_are_not_finite_spoil_no_other_document(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = runner_for(tiny_llama, max_tokens=48)
    target, states = target_of(tiny_llama), target_of(tiny_llama).states

    def poison(chunks: Any, cache: Any, layers: Any) -> Any:
        final, captured = states(chunks, cache, layers)
        for pool in (*cache.keys, *cache.values):
            pool.fill_(torch.nan)
        return torch.full_like(final, torch.nan), captured

    with monkeypatch.context() as patched:
        patched.setattr(target, "states", poison)
        runner.add(FeatureRequest(1, 1, tokens_of(48), (0,)))
        assert joined(drain(runner), 1, 1)[1].isnan().all()
    runner._budget = 20  # a second chunk reads whole blocks, beyond what it wrote
    runner.add(FeatureRequest(1, 2, tokens_of(37), (0, 1)))
    features, final = joined(drain(runner), 1, 2)
    wanted, wanted_final = reference(tiny_llama, tokens_of(37), (0, 1))
    torch.testing.assert_close(features, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(final, wanted_final, atol=1e-4, rtol=1e-4)


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 64)), max_size=20),
    budgets=st.lists(st.integers(1, 50), min_size=1, max_size=8),
    dropped=st.sets(st.tuples(st.integers(0, 3), st.integers(0, 10)), max_size=2),
)
def test_every_row_is_planned_once_in_order_and_memory_comes_back(
    lengths: list[tuple[int, int]], budgets: list[int], dropped: set[tuple[int, int]]
) -> None:
    queue = FeatureQueue(64)
    done: dict[int, int] = dict.fromkeys(range(len(lengths)), 0)
    for document, (client, length) in enumerate(lengths):
        queue.add(FeatureRequest(client, document, (5,) * length, (0,)))
    gone: set[int] = set()
    for step, budget in enumerate(itertools.cycle(budgets)):
        for client, at in dropped:
            if at == step:
                gone.add(client)
                for dropped_one in queue.drop(client):
                    queue.release(dropped_one)
        if not queue:
            break
        chunks = queue.plan(budget)
        assert 0 < sum(len(chunk.tokens) for chunk in chunks) <= budget
        spans = sorted((c.document.extent.start, c.document.extent.count) for c in chunks)
        assert all(a + n <= b for (a, n), (b, _) in itertools.pairwise(spans))
        for chunk in chunks:
            wish = chunk.document.wish
            assert wish.client not in gone
            assert chunk.position == done[wish.document]
            assert chunk.document.extent.count == blocks_for(len(wish.tokens))
            done[wish.document] += len(chunk.tokens)
        for lost in queue.commit(chunks):
            queue.release(lost)
    assert queue.pool.free_blocks == queue.pool.blocks
    for document, (client, length) in enumerate(lengths):
        assert done[document] == length or client in gone


def test_clients_take_turns() -> None:
    queue = FeatureQueue(64)
    for document in range(4):
        queue.add(FeatureRequest(1, document, (5,) * 16, (0,)))
    queue.add(FeatureRequest(2, 0, (5,) * 16, (0,)))
    owners = [chunk.document.wish.client for chunk in queue.plan(64)]
    assert owners == [1, 2, 1, 1]
