"""The real engine on a tiny target, beside transformers' generate, with drafters of every kind."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from specwire.draft import Draft, DraftCost, DraftSource, Need, Opening, Proposals
from tests.support.running_engine import (
    Result,
    RunningEngine,
    greedy_texts,
    reference_of,
    target_of,
)
from tests.support.scripted_drafter import (
    FlakyDrafter,
    Propose,
    ScriptedDrafter,
    adversarial,
    good,
    random_guesses,
    wait_until,
    welcome_for,
)
from verifier_svc.generation import Emitted, FinishReason

VOCAB = 97
LENGTH = 32
Prompt = tuple[int, ...]
Texts = list[list[int]]


def prompt_of(length: int, seed: int = 0) -> Prompt:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return tuple(torch.randint(2, VOCAB, (length,), generator=generator).tolist())


PROMPTS = [prompt_of(n) for n in (1, 2, 17, 64, 150)]


@pytest.fixture(scope="module")
def texts(tiny_llama: Path) -> Texts:
    """What transformers generates, end tokens ignored."""
    return greedy_texts(tiny_llama, PROMPTS, LENGTH)


@pytest.fixture
def drafter(tiny_llama: Path) -> Callable[..., ScriptedDrafter]:
    def make(propose: Propose, **options: Any) -> ScriptedDrafter:
        return ScriptedDrafter(welcome_for(target_of(tiny_llama)), propose, **options)

    return make


def check_usage(result: Result) -> None:
    """Counts agree with each other and with what was emitted."""
    usage, rounds = result.finished.usage, result.rounds
    assert usage.completion_tokens == sum(len(e.tokens) for e in rounds)
    assert usage.rounds == len(rounds)
    assert usage.drafted_rounds == sum(e.drafted > 0 for e in rounds)
    assert usage.accepted_draft_tokens == sum(usage.accepted_at) == sum(e.accepted for e in rounds)
    proposed = usage.accepted_draft_tokens + usage.rejected_draft_tokens
    assert proposed == sum(usage.proposed_at) == sum(e.drafted for e in rounds)
    looked_up = [e for e in rounds if e.source is DraftSource.LOOKUP]
    assert sum(usage.lookup_proposed_at) == sum(e.drafted for e in looked_up)
    assert sum(usage.lookup_accepted_at) == sum(e.accepted for e in looked_up)
    for emitted in rounds[:-1]:
        assert len(emitted.tokens) == emitted.accepted + 1
    # An end token inside a draft leaves no token after it.
    assert rounds[-1].accepted <= len(rounds[-1].tokens) <= rounds[-1].accepted + 1
    assert usage.proposed_at == sorted(usage.proposed_at, reverse=True)
    assert all(a <= p for a, p in zip(usage.accepted_at, usage.proposed_at, strict=True))


def generate_all(engine: RunningEngine, **options: Any) -> list[Result]:
    """All prompts at once, greedy, end tokens ignored."""
    sampling = {"max_tokens": LENGTH, "ignore_eos": True, **options}
    return engine.finish(*[engine.submit(prompt, **sampling) for prompt in PROMPTS])


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
def test_lookups_give_the_same_text_and_are_counted_apart(
    tiny_llama: Path, texts: Texts, drafter: Callable[..., ScriptedDrafter], length: str
) -> None:
    port = drafter(good(texts, wrong=0.2))
    port.welcome = replace(port.welcome, lookup_match=1)
    with RunningEngine(tiny_llama, port, "--draft-length", length) as engine:
        results = generate_all(engine)
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
    port.close()
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
        need = Need(chance.randrange(9), chance.choice([0, 3, 10**9]), chance.choice([0, 10**9]))
        return Proposals((draft,), (need,), DraftCost(10**12, 10**12))

    with RunningEngine(tiny_llama, port, "--draft-length", "3") as engine:
        seqs = [engine.submit(p, max_tokens=LENGTH, ignore_eos=True) for p in PROMPTS]
        while not engine.results[seqs[0]].events or not all(
            engine.results[s].events[-1:] and not isinstance(engine.results[s].events[-1], Emitted)
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
        with torch.inference_mode():
            states = reference_of(tiny_llama)(
                torch.tensor([tokens]), output_hidden_states=True
            ).hidden_states
        wanted = torch.cat([states[layer][0, :-1] for layer in layers], -1)
        torch.testing.assert_close(torch.stack(rows), wanted, rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize("aux_layers", [(0, 1), (3,), (1, 1, 1, 1)])
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


@pytest.mark.parametrize("aux_layers", [(9,), (), (0, 4)])
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


def test_cancel_at_any_time_leaves_the_others_alone(
    tiny_llama: Path, texts: Texts, drafter: Callable[..., ScriptedDrafter]
) -> None:
    chance = random.Random(1)
    port = drafter(good(texts, wrong=0.3))
    flags = ("--draft-length", "3", "--token-budget", "32", "--max-sequences", "4")
    with RunningEngine(tiny_llama, port, *flags) as engine:
        victims: list[int] = []
        kept: list[int] = []
        for i in range(40):
            prompt = PROMPTS[i % len(PROMPTS)]
            seq = engine.submit(prompt, max_tokens=LENGTH, ignore_eos=True)
            (kept if i % 4 == 0 else victims).append(seq)
            if victims and chance.random() < 0.8:
                time.sleep(chance.random() * 0.01)
                engine.cancel(victims.pop(chance.randrange(len(victims))))
        for seq in victims:
            engine.cancel(seq)
        for i, result in zip(range(0, 40, 4), engine.finish(*kept), strict=True):
            assert result.text == texts[i % len(PROMPTS)]
        for seq in [*kept, 10**6]:
            engine.cancel(seq)  # too late, or never known: no error
        # All blocks are free again: the longest sequence there can be is admitted.
        assert engine.generate(prompt_of(5), max_tokens=507, ignore_eos=True).finished
        wait_until(lambda: port.held == [])


def test_requests_queue_while_the_cache_is_full(tiny_llama: Path, texts: Texts) -> None:
    """Blocks for one sequence of full length: requests run one after the other."""
    with RunningEngine(tiny_llama, None, "--kv-memory", "460KiB") as engine:
        fill = prompt_of(40)
        first = engine.submit(fill, max_tokens=472, ignore_eos=True)
        rest = [engine.submit(p, max_tokens=LENGTH, ignore_eos=True) for p in PROMPTS]
        while not engine.results[first].rounds:
            engine.step()
        results = engine.finish(first, *rest)
    assert [result.text for result in results[1:]] == texts
    waits = [result.finished.timings.queue for result in results]
    assert min(waits[1:]) > waits[0]


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 5, "ignore_eos": True},
        {
            "temperature": 0.8, "seed": 2**64 - 1, "repetition_penalty": 1.3,
            "presence_penalty": 0.5, "frequency_penalty": 0.25, "min_tokens": 20,
        },
    ],
)  # fmt: skip
def test_a_resumed_generation_goes_on_as_if_nothing_had_happened(
    tiny_llama: Path, sampling: dict[str, Any]
) -> None:
    prompt = prompt_of(9)
    with RunningEngine(tiny_llama) as engine:
        whole = engine.generate(prompt, max_tokens=32, **sampling)
        assert len(whole.text) > len(prompt) + 19
        for emitted in (1, 5, 12, 19, len(whole.text) - len(prompt) - 1):
            so_far = whole.text[: len(prompt) + emitted]
            resumed = engine.generate(so_far, output_start=len(prompt), max_tokens=32, **sampling)
            assert resumed.text == whole.text
            assert resumed.finished.reason is whole.finished.reason
            usage = resumed.finished.usage
            assert usage.prompt_tokens == len(prompt)
            assert usage.completion_tokens == len(whole.text) - len(prompt)


SAMPLINGS: dict[str, dict[str, Any]] = {
    "sampled": {"temperature": 1.0},
    "cool": {"temperature": 0.6},
    "top_k": {"temperature": 1.0, "top_k": 7},
    "top_p": {"temperature": 1.2, "top_p": 0.8},
    "min_p": {"temperature": 1.0, "min_p": 0.1},
    "penalties": {"temperature": 0.9, "repetition_penalty": 1.2, "frequency_penalty": 0.3,
                  "presence_penalty": -0.4},
    "greedy penalties": {"temperature": 0.0, "repetition_penalty": 1.4},
    "bias": {"temperature": 1.0, "logit_bias": {40: 3.0, 41: -100.0, 1: 2.0}},
    "min_tokens": {"temperature": 1.0, "min_tokens": 25, "logit_bias": {1: 5.0}},
    "stop": {"temperature": 1.0, "stop_token_ids": frozenset(range(20, 26))},
    "ignore_eos": {"temperature": 1.0, "ignore_eos": True, "logit_bias": {1: 3.0}},
    "choice": {"temperature": 1.0, "choice_index": 3},
    "logprobs": {"temperature": 0.0, "top_logprobs": 4},
}  # fmt: skip


SAMPLED_PROMPTS = [prompt_of(n, 1) for n in (3, 30, 90)]


@pytest.fixture(scope="module")
def sampled(tiny_llama: Path) -> dict[str, tuple[list[Result], list[Result]]]:
    """By kind of sampling: results without and with a drafter, each from one crowded engine."""

    def run(port: ScriptedDrafter | None, *flags: str) -> dict[str, list[Result]]:
        with RunningEngine(tiny_llama, port, *flags) as engine:
            seqs = {
                name: [
                    engine.submit(prompt, seed=seed, **options)
                    for prompt, seed in zip(SAMPLED_PROMPTS, (0, 1, 2**63 + 11), strict=True)
                ]
                for name, options in SAMPLINGS.items()
            }
            return {name: engine.finish(*seqs[name]) for name in SAMPLINGS}

    plain = run(None)
    texts = {tuple(result.text): None for results in plain.values() for result in results}

    def propose(tokens: Sequence[int], opening: Opening, count: int) -> list[int]:
        """Several texts begin alike: guess any that fits, so some guesses are wrong."""
        fitting = [text for text in texts if text[: len(tokens)] == tuple(tokens)]
        return list(random.choice(fitting)[len(tokens) :][:count]) if fitting else []

    port = ScriptedDrafter(welcome_for(target_of(tiny_llama)), propose)
    drafted = run(port, "--draft-length", "4")
    assert not port.broken_promises
    return {name: (plain[name], drafted[name]) for name in SAMPLINGS}


@pytest.mark.parametrize("name", SAMPLINGS)
def test_sampling_is_the_same_with_and_without_a_drafter(
    sampled: dict[str, tuple[list[Result], list[Result]]], name: str
) -> None:
    plain, drafted = sampled[name]
    for one, other in zip(plain, drafted, strict=True):
        assert one.text == other.text
        assert one.finished.reason is other.finished.reason
        check_usage(one)
        check_usage(other)
    assert sum(result.finished.usage.accepted_draft_tokens for result in drafted) > 0


def test_logprobs_are_those_of_the_emitted_tokens_with_and_without_a_drafter(
    sampled: dict[str, tuple[list[Result], list[Result]]], tiny_llama: Path
) -> None:
    for one, other in zip(*sampled["logprobs"], strict=True):
        flat = [[lp for e in r.rounds for lp in e.logprobs] for r in (one, other)]
        with torch.inference_mode():
            logits = reference_of(tiny_llama)(torch.tensor([one.text])).logits[0].double()
        exact = torch.log_softmax(logits, -1)[len(one.prompt) - 1 : -1]
        drawn = one.text[len(one.prompt) :]
        assert len(drawn) == len(flat[0]) == len(flat[1])
        for row, token, *got in zip(exact, drawn, *flat, strict=True):
            for logprobs in got:
                assert logprobs.drawn == pytest.approx(row[token].item(), abs=1e-4)
                assert [t for t, _ in logprobs.top] == row.topk(4).indices.tolist()
                values = [value for _, value in logprobs.top]
                assert values == pytest.approx(row.topk(4).values.tolist(), abs=1e-4)


def outputs(engine: RunningEngine, prompt: Sequence[int], **options: Any) -> list[int]:
    return engine.generate(prompt, **options).text[len(prompt) :]


def test_what_each_parameter_does(tiny_llama: Path) -> None:
    prompt = prompt_of(12)
    with RunningEngine(tiny_llama) as engine:
        free = outputs(engine, prompt, temperature=1.0, seed=1, ignore_eos=True)
        assert len(free) == 32
        assert outputs(engine, prompt, temperature=1.0, seed=2, ignore_eos=True) != free
        assert outputs(engine, prompt, temperature=1.0, seed=1, choice_index=1) != free
        assert set(outputs(engine, prompt, logit_bias={50: 100.0})) == {50}
        barred = outputs(
            engine, prompt, temperature=1.0, logit_bias=dict.fromkeys(range(60), -100.0)
        )
        assert min(barred) >= 60
        stopped = engine.generate(prompt, temperature=1.0, seed=1, ignore_eos=True,
                                  stop_token_ids=frozenset({free[7]}))  # fmt: skip
        assert stopped.text[len(prompt) :] == free[: free.index(free[7]) + 1]
        assert stopped.finished.reason is FinishReason.STOP
        eos = engine.generate(prompt, logit_bias={1: 100.0})
        assert (eos.text[len(prompt) :], eos.finished.reason) == ([1], FinishReason.STOP)
        late = outputs(engine, prompt, logit_bias={1: 100.0}, min_tokens=6)
        assert late.index(1) == 6
        assert outputs(engine, prompt, logit_bias={1: 100.0}, ignore_eos=True) == [1] * 32
        varied = outputs(engine, prompt, frequency_penalty=2.0, presence_penalty=2.0,
                         repetition_penalty=5.0, ignore_eos=True)  # fmt: skip
        assert len(set(varied)) > len(set(outputs(engine, prompt, ignore_eos=True)))


def test_an_end_token_inside_an_accepted_draft(
    tiny_llama: Path, drafter: Callable[..., ScriptedDrafter]
) -> None:
    prompt = prompt_of(12)
    with RunningEngine(tiny_llama) as engine:
        text = engine.generate(prompt, ignore_eos=True).text
    stop = text[len(prompt) + 2]
    assert stop not in text[len(prompt) : len(prompt) + 2]
    port = drafter(good([text]))
    with RunningEngine(tiny_llama, port, "--draft-length", "8") as engine:
        result = engine.generate(prompt, ignore_eos=True, stop_token_ids=frozenset({stop}))
    assert result.text == text[: len(prompt) + 3]
    assert result.finished.reason is FinishReason.STOP
    check_usage(result)
    assert result.finished.usage.accepted_draft_tokens == 2


def test_the_context_ends_generations_at_its_last_position(
    tiny_llama: Path, drafter: Callable[..., ScriptedDrafter]
) -> None:
    prompt = prompt_of(50)
    flags = ("--max-model-len", "64", "--draft-length", "8")
    (text,) = greedy_texts(tiny_llama, [prompt], 14)
    with RunningEngine(tiny_llama, drafter(good([text])), *flags) as engine:
        result = engine.generate(prompt, max_tokens=14, ignore_eos=True)
        over = engine.generate(prompt, max_tokens=1000, ignore_eos=True)
        last = engine.generate(text[:-1], max_tokens=9, ignore_eos=True)
    assert result.text == over.text == last.text == text
    assert over.finished.reason is FinishReason.LENGTH


def test_a_failed_step_ends_what_ran_in_it_and_nothing_else(
    tiny_llama: Path, texts: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunningEngine(tiny_llama, None, "--max-sequences", "2") as engine:
        run = engine.target.run
        failures = iter([False, False, False, True])

        def failing(*args: Any, **kwargs: Any) -> torch.Tensor:
            if next(failures, False):
                raise RuntimeError("scripted")
            return run(*args, **kwargs)

        monkeypatch.setattr(engine.target, "run", failing)
        seqs = [engine.submit(p, max_tokens=LENGTH, ignore_eos=True) for p in PROMPTS]
        results = engine.finish(*seqs)
        assert all("engine failed" in result.failed.reason for result in results[:2])
        assert [result.text for result in results[2:]] == texts[2:]
        assert engine.generate(PROMPTS[0], max_tokens=LENGTH, ignore_eos=True).text == texts[0]
        assert engine.engine.alive


def test_a_broken_port_ends_no_generation_for_good(
    tiny_llama: Path, texts: Texts, drafter: Callable[..., ScriptedDrafter]
) -> None:
    """An exception from the drafter's side of the process fails a step, not the engine."""
    port = drafter(good(texts))
    with RunningEngine(tiny_llama, port, "--draft-length", "2") as engine:
        original = port.propose
        port.propose = lambda *_: [1 // 0]
        engine.finish(engine.submit(PROMPTS[2], max_tokens=LENGTH, ignore_eos=True))
        port.propose = original
        port.unlink()
        port.link()
        assert engine.generate(PROMPTS[2], max_tokens=LENGTH, ignore_eos=True).text == texts[2]


def test_timings_add_up(
    tiny_llama: Path, texts: Texts, drafter: Callable[..., ScriptedDrafter]
) -> None:
    port = drafter(good(texts), delay=0.003)
    with RunningEngine(tiny_llama, port, "--draft-length", "2") as engine:
        started = time.perf_counter()
        result = engine.generate(PROMPTS[2], max_tokens=LENGTH, ignore_eos=True)
        wall = time.perf_counter() - started
    port.close()
    timings = result.finished.timings
    parts = [timings.queue, timings.prefill, timings.target, timings.draw, timings.drafter,
             timings.drafter_queue, timings.wire, timings.host]  # fmt: skip
    assert min(parts) >= 0
    assert timings.prefill > 0
    assert timings.target > 0
    assert timings.wire > 0.003 * 5
    assert 0.5 * wall < sum(parts) <= wall


def test_generations_that_want_no_drafts_get_none(
    tiny_llama: Path, texts: Texts, drafter: Callable[..., ScriptedDrafter]
) -> None:
    port = drafter(good(texts))
    with RunningEngine(tiny_llama, port, "--draft-length", "4") as engine:
        plain = engine.submit(PROMPTS[1], max_tokens=LENGTH, ignore_eos=True, max_draft_tokens=0)
        capped = engine.submit(PROMPTS[2], max_tokens=LENGTH, ignore_eos=True, max_draft_tokens=2)
        results = engine.finish(plain, capped)
    assert [result.text for result in results] == texts[1:3]
    assert results[0].finished.usage.drafted_rounds == 0
    assert len(results[1].finished.usage.proposed_at) == 2
    assert plain not in port.seen
