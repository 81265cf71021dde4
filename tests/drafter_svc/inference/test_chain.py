import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import speckernels as kernels
from drafter_svc.inference.chain import ChainOutput
from drafter_svc.inference.chain_runner import ChainRequest
from drafter_svc.inference.entry_forward import EntryRows
from drafter_svc.inference.kv_cache import Slab
from speckernels.exponential_noise import exponentials
from specwire.messages import SequenceContext
from specwire.philox import signed64
from tests.support.drafter_fixtures import GREEDY, Choose, Parts, Text, greedy, random_text
from tests.support.fake_flash_attention import serve_flash


@pytest.fixture(autouse=True, params=["operators", "graphs"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains operator by operator, and recorded as on a GPU."""
    if request.param == "graphs":
        serve_flash(monkeypatch)
        monkeypatch.setattr(Parts, "record", staticmethod(kernels.eager_capture))


def append(parts: Parts, text: Text, slot: Slab, start: int, stop: int) -> EntryRows:
    rows = EntryRows(slot, start, text.tokens[start + 1 : stop + 1])
    parts.chain.append([rows], [text.features[start:stop]])
    return rows


def prepared(parts: Parts, text: Text, base: int, seq: int = 0) -> Slab:
    slot, _ = parts.cache.reserve((0, seq), base + 16, set())
    append(parts, text, slot, 0, base)
    return slot


def request(
    parts: Parts, text: Text, slot: Slab, base: int, length: int, opening: SequenceContext
) -> ChainRequest:
    penalties = parts.chain.open_penalties(opening)
    if penalties is not None:
        penalties.extend(text.tokens[1 : base + 1])
    return ChainRequest(slot, base, length, opening, penalties)


def slow_choice(parts: Parts, text: Text, base: int, opening: SequenceContext) -> Choose:
    """The rule of the design, token by token over the whole draft vocabulary."""

    def choose(logits: Tensor, guesses: Sequence[int]) -> int:
        tokens = [*text.tokens[: base + 1], *guesses]
        output = tokens[opening.output_start :]
        scores = []
        for draft_id, raw in enumerate(logits.tolist()):
            target = int(parts.target_ids[draft_id])
            score = raw
            if target in tokens:
                repetition = opening.repetition_penalty
                score = score / repetition if score > 0 else score * repetition
            count = output.count(target)
            score -= opening.frequency_penalty * count + opening.presence_penalty * (count > 0)
            scores.append(score + opening.logit_bias.get(target, 0.0))
        values = torch.tensor(scores, dtype=torch.float64)
        if opening.temperature == 0:
            return int(values.argmax())
        noise = exponentials(
            torch.tensor(signed64(opening.seed)),
            torch.tensor(len(tokens)),
            parts.target_ids,
            torch.tensor(opening.choice_index),
        )
        scaled = values / (opening.temperature * parts.config.draft_temperature)
        return int((scaled - noise.log()).argmax())

    return choose


def check(
    parts: Parts, guess: ChainOutput, text: Text, base: int, length: int, choose: Choose
) -> None:
    slow = parts.slow_draft(text, base, length, choose)
    assert list(guess.tokens) == slow.tokens
    assert guess.confidence == pytest.approx(slow.confidence, rel=1e-4)


@pytest.mark.parametrize("norm_output", [True, False])
@pytest.mark.parametrize("fc_norm", [True, False])
@pytest.mark.parametrize("norm_before_residual", [True, False])
def test_ragged_batch_equals_slow_chains(
    norm_output: bool, fc_norm: bool, norm_before_residual: bool
) -> None:
    parts = Parts(
        norm_output=norm_output, fc_norm=fc_norm, norm_before_residual=norm_before_residual
    )
    shapes = [(1, 3), (17, 6), (70, 1), (9, 6)]
    texts = [random_text(base + 1, seed) for seed, (base, _) in enumerate(shapes)]
    requests = [
        request(parts, text, prepared(parts, text, base, i), base, length, GREEDY)
        for i, (text, (base, length)) in enumerate(zip(texts, shapes, strict=True))
    ]
    guesses = parts.chain.draft(requests)
    for text, (base, length), guess in zip(texts, shapes, guesses, strict=True):
        assert len(guess.tokens) == length
        check(parts, guess, text, base, length, greedy)


TOGGLES: list[dict[str, Any]] = [
    {"num_hidden_layers": 3},
    {"attention_bias": True},
    {"qk_norm": True},
    {"fc_norm": False, "norm_before_fc": True},
    {"sliding_window": 4},
    {"sliding_window": 1, "num_hidden_layers": 2},
    {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 8.0}},
]


@pytest.mark.parametrize("toggles", TOGGLES, ids=str)
def test_toggles_of_other_checkpoints(toggles: dict[str, Any]) -> None:
    parts = Parts(**toggles)
    shapes = [(1, 3), (17, 6), (9, 6)]
    texts = [random_text(base + 1, seed) for seed, (base, _) in enumerate(shapes)]
    slots = [parts.cache.reserve((0, i), base + 8, set())[0] for i, (base, _) in enumerate(shapes)]
    for text, slot, (base, _) in zip(texts, slots, shapes, strict=True):
        # In pieces, so that rows meet what a call before them left in every layer.
        for start, stop in [(0, base // 2), (base // 2, base)]:
            if start < stop:
                append(parts, text, slot, start, stop)
    requests = [
        request(parts, text, slot, base, length, GREEDY)
        for text, slot, (base, length) in zip(texts, slots, shapes, strict=True)
    ]
    guesses = parts.chain.draft(requests)
    for text, (base, length), guess in zip(texts, shapes, guesses, strict=True):
        check(parts, guess, text, base, length, greedy)


@pytest.fixture
def compiled() -> Iterator[None]:
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler here")
    kernels.load_kernels("on")
    yield
    kernels.load_kernels("off")


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("toggles", [{}, *TOGGLES], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_compiled_kernels_propose_the_same(toggles: dict[str, Any], temperature: float) -> None:
    """At a width that they take: the one of the tiny drafter is left to torch."""
    parts = Parts(head_dim=64, intermediate_size=32, **toggles)
    opening = SequenceContext(3, 6, seed=7, temperature=temperature)
    shapes = [(1, 3), (70, 6), (9, 6)]
    texts = [random_text(base + 1, seed) for seed, (base, _) in enumerate(shapes)]
    slots = [parts.cache.reserve((0, i), base + 8, set())[0] for i, (base, _) in enumerate(shapes)]
    for text, slot, (base, _) in zip(texts, slots, shapes, strict=True):
        for start, stop in [(0, base // 2), (base // 2, base)]:
            if start < stop:
                append(parts, text, slot, start, stop)
    requests = [
        request(parts, text, slot, base, length, opening)
        for text, slot, (base, length) in zip(texts, slots, shapes, strict=True)
    ]
    guesses = parts.chain.draft(requests)
    for text, (base, length), guess in zip(texts, shapes, guesses, strict=True):
        check(parts, guess, text, base, length, slow_choice(parts, text, base, opening))


def test_every_toggle_changes_what_is_drafted() -> None:
    text = random_text(18, 1)
    plain = Parts().slow_draft(text, 17, 6, greedy).confidence
    for toggles in TOGGLES:
        assert Parts(**toggles).slow_draft(text, 17, 6, greedy).confidence != plain, toggles


def test_rows_of_many_sequences_in_one_pass_equal_rows_alone() -> None:
    parts = Parts()
    texts = [random_text(40, seed) for seed in range(3)]
    slots = [parts.cache.reserve((0, i), 48, set())[0] for i in range(3)]
    # The same sequence may come twice, in order.
    pieces = [(0, 0, 12), (1, 0, 1), (0, 12, 30), (2, 0, 7), (1, 1, 2)]
    parts.chain.append(
        [EntryRows(slots[i], a, texts[i].tokens[a + 1 : b + 1]) for i, a, b in pieces],
        [texts[i].features[a:b] for i, a, b in pieces],
    )
    for i, base in [(0, 30), (1, 2), (2, 7)]:
        asked = request(parts, texts[i], slots[i], base, 4, GREEDY)
        check(parts, parts.chain.draft([asked])[0], texts[i], base, 4, greedy)


@pytest.mark.parametrize(
    "toggles",
    [{}, {"num_hidden_layers": 3, "qk_norm": True}, {"mtp_head": True, "aux_layers": (4,)}],
    ids=str,
)
def test_keys_and_values_alone_are_those_of_a_whole_run(toggles: dict[str, Any]) -> None:
    text, pools = random_text(41, 4), []
    for keys_only in (False, True):
        parts = Parts(**toggles)
        for pool in (*parts.cache.keys, *parts.cache.values):
            pool.zero_()
        slot, _ = parts.cache.reserve((0, 0), 64, set())
        width = 16 * len(parts.config.aux_layers)
        for start, stop in ((0, 36), (36, 40)):
            rows = EntryRows(slot, start, text.tokens[start + 1 : stop + 1])
            parts.chain.append([rows], [text.features[start:stop, :width]], keys_only=keys_only)
        assert slot.ready != keys_only
        pools.append([pool[:40] for pool in (*parts.cache.keys, *parts.cache.values)])
    assert pools[0][0].any()
    for whole, alone in zip(*pools, strict=True):
        torch.testing.assert_close(alone, whole, rtol=1e-5, atol=1e-5)


def test_real_entries_replace_guesses() -> None:
    parts = Parts()
    text = random_text(30, 5)
    slot = prepared(parts, text, 10)
    parts.chain.draft([request(parts, text, slot, 10, 8, GREEDY)])
    for start, stop in [(10, 11), (11, 16), (16, 17)]:
        append(parts, text, slot, start, stop)
        asked = request(parts, text, slot, stop, 8, GREEDY)
        check(parts, parts.chain.draft([asked])[0], text, stop, 8, greedy)


def test_a_state_that_is_not_finite_drafts_the_first_token_without_confidence() -> None:
    parts = Parts()
    texts = [random_text(30, seed) for seed in (5, 6)]
    slots = [prepared(parts, text, 10, seq) for seq, text in enumerate(texts)]
    parts.state(slots[0]).fill_(torch.nan)
    asked = [
        request(parts, text, slot, 10, length, GREEDY)
        for text, slot, length in zip(texts, slots, (2, 3), strict=True)
    ]
    broken, whole = parts.chain.draft(asked)
    assert broken == ChainOutput((int(parts.target_ids[0]),) * 2, (0.0, 0.0))
    check(parts, whole, texts[1], 10, 3, greedy)


def test_a_chain_can_run_again_without_new_rows() -> None:
    parts = Parts()
    text = random_text(12, 6)
    asked = request(parts, text, prepared(parts, text, 11), 11, 5, GREEDY)
    assert parts.chain.draft([asked]) == parts.chain.draft([asked])


OPENINGS = [
    SequenceContext(3, 6, seed=2**64 - 5, temperature=1.0),
    SequenceContext(3, 6, seed=11, choice_index=2, temperature=0.4),
    SequenceContext(3, 6, repetition_penalty=1.6),
    SequenceContext(3, 6, presence_penalty=1.5, frequency_penalty=0.8),
    SequenceContext(3, 6, logit_bias={2: 4.0, 5: -100.0, 4: 50.0}),
    SequenceContext(
        3, 6, 77, 1, 0.8, repetition_penalty=0.7, presence_penalty=-0.5, logit_bias={8: 1.0}
    ),
]  # fmt: skip


@pytest.mark.parametrize("opening", OPENINGS)
def test_choice_equals_the_rule_over_the_whole_vocabulary(opening: SequenceContext) -> None:
    parts = Parts(draft_temperature=0.7)
    for seed in range(8):
        text = random_text(20, seed)
        # Repetition matters only where the text has draft tokens.
        text.tokens[7:19] = [int(parts.target_ids[(seed * i) % 40]) for i in range(12)]
        own = replace(opening, seed=opening.seed ^ seed)
        slot = prepared(parts, text, 18, seed)
        guess = parts.chain.draft([request(parts, text, slot, 18, 6, own)])[0]
        check(parts, guess, text, 18, 6, slow_choice(parts, text, 18, own))


def test_sequences_that_draw_differently_share_a_batch() -> None:
    parts = Parts(draft_temperature=0.7)
    openings = [GREEDY, *OPENINGS]
    texts = [random_text(20, seed) for seed in range(len(openings))]
    requests = [
        request(parts, text, prepared(parts, text, 18, i), 18, 1 + i % 4, opening)
        for i, (text, opening) in enumerate(zip(texts, openings, strict=True))
    ]
    for asked, text, guess in zip(requests, texts, parts.chain.draft(requests), strict=True):
        choose = slow_choice(parts, text, 18, asked.opening)
        check(parts, guess, text, 18, asked.length, choose)


def test_draws_follow_the_draft_distribution() -> None:
    """With a fresh seed each, first draft tokens are distributed as q at t_d * T."""
    parts = Parts(draft_temperature=0.7)
    text = random_text(10, 1)
    slot = prepared(parts, text, 9)
    requests = [
        ChainRequest(slot, 9, 1, SequenceContext(3, 6, seed=seed, temperature=0.9))
        for seed in range(4000)
    ]
    drawn = torch.tensor([guess.tokens[0] for guess in parts.chain.draft(requests)])
    expected = (parts.module.logits(parts.state(slot)) / (0.7 * 0.9)).softmax(-1)
    observed = (drawn[:, None] == parts.target_ids).float().mean(0)
    # Four standard deviations of each frequency.
    assert ((observed - expected).abs() < 4 * (expected / 4000).sqrt() + 1e-3).all()
