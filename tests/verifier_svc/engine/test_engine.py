"""The real engine on a tiny target, beside transformers' generate, with drafters of every kind."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from specwire.messages import Draft, DraftCost, Proposals, ResendFrom
from tests.support.engine_fixtures import (
    LENGTH,
    PROMPTS,
    VOCAB,
    Texts,
    check_usage,
    generate_all,
    prompt_of,
)
from tests.support.running_engine import RunningEngine, greedy_texts, reference_of, target_of
from tests.support.scripted_drafter import (
    FlakyDrafter,
    ScriptedDrafter,
    adversarial,
    good,
    random_guesses,
    wait_until,
    welcome_for,
)
from tests.support.tiny_llama import write_tiny_llama
from verifier_svc.kv.kv_cache import KVCache
from verifier_svc.request.types import FinishReason, RoundOutput


def check_states(
    folder: Path, tokens: list[int], rows: list[torch.Tensor], layers: tuple[int, ...]
) -> None:
    """Row i is what transformers has as the input to the layers at position i."""
    with torch.inference_mode():
        out = reference_of(folder)(torch.tensor([tokens]), output_hidden_states=True)
    wanted = torch.cat([out.hidden_states[layer][0, :-1] for layer in layers], -1)
    torch.testing.assert_close(torch.stack(rows), wanted, rtol=1e-4, atol=1e-4)


def test_plain_decoding_equals_generate_one_by_one(tiny_llama: Path, texts: Texts) -> None:
    with RunningEngine(tiny_llama) as engine:
        for prompt, text in zip(PROMPTS, texts, strict=True):
            result = engine.generate(prompt, max_tokens=LENGTH, ignore_eos=True)
            assert result.text == text
            assert result.finished.reason is FinishReason.LENGTH
            check_usage(result)
            assert result.finished.usage.drafted_rounds == 0


@pytest.mark.parametrize("length", ["0", "1", "3", "5", "8", "auto"])
def test_every_draft_length_gives_the_same_text(
    tiny_llama: Path, texts: Texts, drafter: Callable[..., ScriptedDrafter], length: str
) -> None:
    port = drafter(good(texts, wrong=0.2))
    with RunningEngine(tiny_llama, port, "--draft-length", length) as engine:
        results = generate_all(engine)
    for result, text in zip(results, texts, strict=True):
        assert result.text == text
        check_usage(result)
    usages = [result.finished.usage for result in results]
    longest = max(len(usage.proposed_at) for usage in usages)
    if length == "auto":
        assert longest <= 8
    else:
        assert longest == int(length)
        assert all((usage.accepted_draft_tokens > 0) == (length != "0") for usage in usages)
    assert not port.broken_promises


@pytest.mark.parametrize("length", ["3", "auto"])
def test_lookups_give_the_same_text_and_are_counted_apart(tmp_path: Path, length: str) -> None:
    # Steps so long that drafts made by Python in between are worth their time on a busy machine,
    # and texts of more rounds than pass between two probes of lookups.
    deep = write_tiny_llama(tmp_path, layers=12)
    texts = greedy_texts(deep, PROMPTS, 160)
    welcome = welcome_for(target_of(deep), lookup_match=1)
    port = ScriptedDrafter(welcome, good(texts, wrong=0.2))
    with RunningEngine(deep, port, "--draft-length", length) as engine:
        results = generate_all(engine, max_tokens=160)
    for result, text in zip(results, texts, strict=True):
        assert result.text == text
        check_usage(result)
    usages = [result.finished.usage for result in results]
    looked_up = sum(sum(usage.lookup_proposed_at) for usage in usages)
    assert 0 < looked_up < sum(sum(usage.proposed_at) for usage in usages)
    assert not port.broken_promises


def test_a_perfect_drafter_saves_rounds(
    tiny_llama: Path, texts: Texts, drafter: Callable[..., ScriptedDrafter]
) -> None:
    with RunningEngine(tiny_llama, drafter(good(texts)), "--draft-length", "3") as engine:
        results = generate_all(engine)
    for result, text in zip(results, texts, strict=True):
        assert result.text == text
        usage = result.finished.usage
        assert usage.rejected_draft_tokens == 0
        assert usage.rounds <= LENGTH // 4 + 2


@pytest.mark.parametrize("kind", ["random", "adversarial", "silent", "late", "flaky"])
def test_no_drafter_changes_the_text(
    tiny_llama: Path, texts: Texts, drafter: Callable[..., ScriptedDrafter], kind: str
) -> None:
    make: dict[str, Callable[[], ScriptedDrafter]] = {
        "random": lambda: drafter(random_guesses(VOCAB)),
        "adversarial": lambda: drafter(adversarial(texts)),
        "silent": lambda: drafter(good(texts)),
        "late": lambda: drafter(good(texts), delay=0.03),
        "flaky": lambda: FlakyDrafter(welcome_for(target_of(tiny_llama)), good(texts, 0.1)),
    }
    port = make[kind]()
    port.silent = kind == "silent"
    flags = ("--draft-length", "4", "--draft-deadline-ms", "10")
    with RunningEngine(tiny_llama, port, *flags) as engine:
        results = generate_all(engine)
    port.settle()
    for result, text in zip(results, texts, strict=True):
        assert result.text == text
        check_usage(result)
    assert port.rounds > 0
    assert not port.broken_promises


def test_a_drafter_that_talks_nonsense_changes_nothing(
    tiny_llama: Path, texts: Texts, drafter: Callable[..., ScriptedDrafter]
) -> None:
    """Answers nobody asked for: unknown sequences, bases anywhere, impossible lengths."""
    port = drafter(good(texts, wrong=0.3))
    chance = random.Random(0)

    def nonsense() -> Proposals:
        seq, base = chance.randrange(9), chance.choice([0, 1, 20, 70, 10**9])
        draft = Draft(
            seq, base, tuple(chance.randrange(VOCAB) for _ in range(chance.randrange(40)))
        )
        need = ResendFrom(
            chance.randrange(9), chance.choice([0, 3, 10**9]), chance.choice([0, 10**9])
        )
        return Proposals((draft,), (need,), DraftCost(10**12, 10**12))

    with RunningEngine(tiny_llama, port, "--draft-length", "3") as engine:
        seqs = [engine.submit(p, max_tokens=LENGTH, ignore_eos=True) for p in PROMPTS]
        while not engine.results[seqs[0]].events or not all(
            engine.results[s].events[-1:]
            and not isinstance(engine.results[s].events[-1], RoundOutput)
            for s in seqs
        ):
            engine.engine.post(nonsense())
            engine.step()
        results = engine.finish(*seqs)
    assert [result.text for result in results] == texts


@pytest.mark.parametrize("budget", ["32", "40"])
def test_prompts_in_small_chunks(
    tiny_llama: Path, texts: Texts, drafter: Callable[..., ScriptedDrafter], budget: str
) -> None:
    port = drafter(good(texts, wrong=0.2))
    flags = ("--token-budget", budget, "--draft-length", "3")
    with RunningEngine(tiny_llama, port, *flags) as engine:
        results = generate_all(engine)
    assert [result.text for result in results] == texts
    assert not port.broken_promises


def test_identical_prompts_at_once_run_one_prefill(tiny_llama: Path, texts: Texts) -> None:
    with RunningEngine(tiny_llama, None, "--token-budget", "32") as engine:
        seqs = [engine.submit(PROMPTS[-1], max_tokens=LENGTH, ignore_eos=True) for _ in range(3)]
        results = engine.finish(*seqs)
        cost = engine.engine._policy.step_cost
    assert [result.text for result in results] == [texts[-1]] * 3
    cached = [result.finished.usage.cached_prompt_tokens for result in results]
    assert cached[0] == 0
    assert min(cached[1:]) >= 128
    assert cost.known
    assert cost.prompt_rows(1, 100.0) > 0, "what prompts cost was learned"


def test_the_drafter_is_fed_the_targets_own_states(
    tiny_llama: Path, texts: Texts, drafter: Callable[..., ScriptedDrafter]
) -> None:
    """Row i is the input to the aux layers at position i, whatever was drafted on the way."""
    port = drafter(good(texts, wrong=0.3))
    flags = ("--token-budget", "48", "--draft-length", "4")
    with RunningEngine(tiny_llama, port, *flags) as engine:
        results = generate_all(engine)
        layers = engine.target.aux_layers
    for seq, result in enumerate(results, 1):
        tokens, rows = port.seen[seq]
        assert len(rows) == len(tokens) - 1 > len(result.prompt)
        assert tokens == result.text[: len(tokens)]
        check_states(tiny_llama, tokens, rows, layers)


def test_ended_sequences_are_closed_at_the_drafter(
    tiny_llama: Path, texts: Texts, drafter: Callable[..., ScriptedDrafter]
) -> None:
    port = drafter(good(texts))
    with RunningEngine(tiny_llama, port, "--draft-length", "2") as engine:
        generate_all(engine)
        wait_until(lambda: len(port.closed) == len(PROMPTS))
        assert port.held == []


def test_a_drafter_that_dies_and_returns_speeds_up_the_running_request(
    tiny_llama: Path, drafter: Callable[..., ScriptedDrafter]
) -> None:
    prompt = prompt_of(20)
    (text,) = greedy_texts(tiny_llama, [prompt], 120)
    port = drafter(good([text]))
    with RunningEngine(tiny_llama, port, "--draft-length", "1") as engine:
        seq = engine.submit(prompt, max_tokens=120, ignore_eos=True)
        result = engine.results[seq]

        def run_until(condition: Callable[[], bool]) -> None:
            while not condition():
                engine.step()

        run_until(lambda: any(e.accepted for e in result.rounds))
        port.unlink()
        died = len(result.rounds)
        run_until(lambda: any(e.drafted == 0 for e in result.rounds[died:]))
        port.link()
        returned = len(result.rounds)
        run_until(lambda: any(e.accepted for e in result.rounds[returned:]))
        assert engine.finish(seq)[0].text == text


def test_a_drafter_that_falls_silent_and_recovers(
    tiny_llama: Path, drafter: Callable[..., ScriptedDrafter]
) -> None:
    """Its outstanding request is never answered, so only a new link brings drafts back."""
    prompt = prompt_of(20)
    (text,) = greedy_texts(tiny_llama, [prompt], 60)
    port = drafter(good([text]))
    port.silent = True
    flags = ("--draft-length", "1", "--draft-deadline-ms", "5")
    with RunningEngine(tiny_llama, port, *flags) as engine:
        seq = engine.submit(prompt, max_tokens=60, ignore_eos=True)
        while len(engine.results[seq].rounds) < 5:
            engine.step()
        assert port.rounds == 1, "no second request before the answer to the first"
        port.silent = False
        port.unlink()
        port.link()
        (result,) = engine.finish(seq)
    assert result.text == text
    assert result.finished.usage.accepted_draft_tokens > 0


def test_the_wait_for_a_draft_ends_at_the_deadline(
    tiny_llama: Path, drafter: Callable[..., ScriptedDrafter]
) -> None:
    port = drafter(random_guesses(VOCAB))
    port.silent = True
    flags = ("--draft-length", "2", "--draft-deadline-ms", "50")
    with RunningEngine(tiny_llama, port, *flags) as engine:
        started = time.perf_counter()
        engine.generate(prompt_of(5), max_tokens=20)
        assert time.perf_counter() - started < 5


def test_a_drafter_with_a_shorter_context_is_asked_while_it_lasts(
    tiny_llama: Path, texts: Texts
) -> None:
    limit = 70
    welcome = welcome_for(target_of(tiny_llama), max_length=limit, max_draft_tokens=2)
    port = ScriptedDrafter(welcome, good(texts))
    with RunningEngine(tiny_llama, port, "--draft-length", "4") as engine:
        results = generate_all(engine)
    assert [result.text for result in results] == texts
    drafted = [result.finished.usage.drafted_rounds > 0 for result in results]
    assert drafted == [True, True, True, True, False], "150 tokens never fit"
    assert all(len(tokens) <= limit + 1 for tokens, _ in port.seen.values())
    assert max(len(result.finished.usage.proposed_at) for result in results) == 2


@pytest.mark.parametrize("aux_layers", [(0, 1), (3,), (1, 4), (1, 1, 1, 1)])
def test_other_aux_layers_are_captured_when_a_drafter_wants_them(
    tiny_llama: Path, texts: Texts, aux_layers: tuple[int, ...]
) -> None:
    target = target_of(tiny_llama)
    before = target.aux_layers
    port = ScriptedDrafter(welcome_for(target, aux_layer_ids=aux_layers), good(texts))
    try:
        with RunningEngine(tiny_llama, port, "--draft-length", "2") as engine:
            results = generate_all(engine)
        assert [result.text for result in results] == texts
        assert results[0].finished.usage.accepted_draft_tokens > 0
        assert port.seen[1][1][0].shape == (len(aux_layers) * target.hidden_size,)
    finally:
        target.capture(before)


@pytest.mark.parametrize("aux_layers", [(9,), (), (0, 5)])
def test_aux_layers_that_the_target_lacks_mean_plain_decoding(
    tiny_llama: Path, texts: Texts, aux_layers: tuple[int, ...]
) -> None:
    target = target_of(tiny_llama)
    before = target.aux_layers
    port = ScriptedDrafter(welcome_for(target, aux_layer_ids=aux_layers), good(texts))
    with RunningEngine(tiny_llama, port, "--draft-length", "2") as engine:
        results = generate_all(engine)
    assert [result.text for result in results] == texts
    assert port.rounds == 0
    assert target.aux_layers == before


def test_a_drafter_whose_features_have_no_room_costs_no_request(
    tiny_llama: Path, texts: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = target_of(tiny_llama)
    before, asked = target.aux_layers, []

    def full(cache: KVCache, width: int) -> None:
        asked.append(width)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(KVCache, "resize_features", full)
    port = ScriptedDrafter(welcome_for(target, aux_layer_ids=(0, 1)), good(texts))
    with RunningEngine(tiny_llama, port, "--draft-length", "2") as engine:
        results = generate_all(engine)
    assert asked == [2 * target.hidden_size]
    assert [result.text for result in results] == texts
    assert port.rounds == 0
    assert target.aux_layers == before


@pytest.mark.parametrize("salt", ["", "other"])
def test_the_next_turn_goes_on_from_what_is_cached(
    tiny_llama: Path, drafter: Callable[..., ScriptedDrafter], salt: str
) -> None:
    """The same text and the same drafts as without a cache, and the drafter has the same states."""
    prompt = prompt_of(50)
    (text,) = greedy_texts(tiny_llama, [prompt], 30)
    turn = (*text, *prompt_of(9, seed=4))
    (whole,) = greedy_texts(tiny_llama, [turn], LENGTH)
    port = drafter(good([text, whole]))
    with RunningEngine(tiny_llama, port, "--draft-length", "3") as engine:
        engine.generate(prompt, max_tokens=30, ignore_eos=True)
        wait_until(lambda: port.closed == [1])
        result = engine.generate(turn, max_tokens=LENGTH, ignore_eos=True, cache_salt=salt)
        layers = engine.target.aux_layers
    assert result.text == whole
    cached = result.finished.usage.cached_prompt_tokens
    assert cached == (0 if salt else 64)
    assert result.finished.usage.rejected_draft_tokens == 0
    assert port.inherited == (0 if salt else 63)
    tokens, rows = port.seen[2]
    assert tokens == whole[: len(tokens)]
    check_states(tiny_llama, tokens, rows, layers)


def test_states_of_other_layers_are_not_inherited(
    tiny_llama: Path, drafter: Callable[..., ScriptedDrafter]
) -> None:
    prompt = prompt_of(50)
    (text,) = greedy_texts(tiny_llama, [prompt], LENGTH)
    port = drafter(good([text]))
    with RunningEngine(tiny_llama, port, "--draft-length", "3") as engine:
        engine.generate(prompt, max_tokens=LENGTH, ignore_eos=True)
        port.unlink()
        port.welcome = replace(port.welcome, aux_layer_ids=(0, 1, 2))
        port.link()
        result = engine.generate(prompt, max_tokens=LENGTH, ignore_eos=True)
    assert result.text == text
    assert result.finished.usage.cached_prompt_tokens == 0
    assert result.finished.usage.accepted_draft_tokens > 0


def test_a_drafter_that_lost_the_source_is_sent_all_of_it(
    tiny_llama: Path, drafter: Callable[..., ScriptedDrafter]
) -> None:
    prompt = prompt_of(50)
    (text,) = greedy_texts(tiny_llama, [prompt], LENGTH)
    port = drafter(good([text]))
    with RunningEngine(tiny_llama, port, "--draft-length", "3") as engine:
        engine.generate(prompt, max_tokens=LENGTH, ignore_eos=True)
        wait_until(lambda: port.closed == [1])
        port.evict()
        result = engine.generate(prompt, max_tokens=LENGTH, ignore_eos=True)
    assert result.text == text
    assert result.finished.usage.cached_prompt_tokens == 48
    assert result.finished.usage.accepted_draft_tokens > 0
    tokens, rows = port.seen[2]
    assert len(rows) == len(tokens) - 1 > len(prompt)
