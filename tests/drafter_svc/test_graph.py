"""Chains as on a GPU: recorded for each shape of a batch, tried, and never waiting for a device."""

from collections.abc import Sequence
from typing import Any

import pytest
import structlog
import torch

from drafter_svc.cache import KvCache
from drafter_svc.chain import Chain, ChainRequest, Guess
from drafter_svc.drawing import DraftVocabulary
from drafter_svc.fused import FusedDrafter
from drafter_svc.graph import Chains
from specwire.draft import Opening
from specwire.kernels import Noise, called
from specwire.kernels.graph import Replay, Tensors, Work
from tests.drafter_svc.parts import GREEDY, Parts, random_text
from tests.drafter_svc.test_chain import prepared
from tests.drafter_svc.tiny import tiny_config, tiny_drafter
from tests.support.flash import serve_flash

DRAWN = Opening(3, 6, seed=7, temperature=0.9)


class Counting:
    """A recorder that keeps the shapes it recorded: draft tokens at most, and chains."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, work: Work) -> tuple[Tensors, Replay]:
        results, replay = called(work)
        self.shapes.append(tuple(results[0].shape))
        return results, replay


@pytest.fixture(autouse=True)
def flash(monkeypatch: pytest.MonkeyPatch) -> None:
    serve_flash(monkeypatch)


def drafts(
    monkeypatch: pytest.MonkeyPatch, record: Any, batches: Sequence[Sequence[int]], opening: Opening
) -> tuple[list[list[Guess]], Parts]:
    """What batches of chains of these lengths draft, each after another text."""
    monkeypatch.setattr(Parts, "record", record and staticmethod(record))
    parts = Parts()
    slots = [(prepared(parts, random_text(20 + i, i), 18 + i, i), 18 + i) for i in range(9)]
    return [
        parts.chain.draft(
            [ChainRequest(*slots[i], length, opening) for i, length in enumerate(lengths)]
        )
        for lengths in batches
    ], parts


def alike(got: list[list[Guess]], wanted: list[list[Guess]]) -> None:
    for some, others in zip(got, wanted, strict=True):
        for guess, other in zip(some, others, strict=True):
            assert guess.tokens == other.tokens
            assert guess.confidence == pytest.approx(other.confidence, rel=1e-4)


@pytest.mark.parametrize("opening", [GREEDY, DRAWN])
def test_shapes_are_recorded_once_and_filled_up(
    monkeypatch: pytest.MonkeyPatch, opening: Opening
) -> None:
    record = Counting()
    batches = [[3], [3], [2, 5, 5], [5, 1, 4, 2], [1], [4] * 9, [5, 4, 3]]
    wanted, _ = drafts(monkeypatch, None, batches, opening)
    got, _ = drafts(monkeypatch, record, batches, opening)
    alike(got, wanted)
    assert record.shapes == [(3, 1), (5, 4), (1, 1), (4, 16)]


def test_a_chain_that_ends_early_writes_nothing_behind_its_slab(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, parts = drafts(monkeypatch, called, [], GREEDY)
    pools = (*parts.cache.keys, *parts.cache.values)
    for pool in pools:
        pool.normal_()  # what a chain writes is nowhere there already
    before = [pool.clone() for pool in pools]
    slots = [parts.cache.reserve((0, i), 1, set())[0] for i in (0, 1)]
    lengths = (2, 6)
    parts.chain.draft(
        [ChainRequest(slot, 18 + i, lengths[i], GREEDY) for i, slot in enumerate(slots)]
    )
    written = torch.zeros(parts.cache.spare + 1, dtype=torch.bool)
    written[parts.cache.spare] = True
    for i, slot in enumerate(slots):
        written[slot.start + 18 + i : slot.start + 18 + i + lengths[i] - 1] = True
    for pool, old in zip(pools, before, strict=True):
        assert torch.equal((pool != old).flatten(1).any(1), written)


def test_a_state_that_is_not_finite_ends_no_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    _, parts = drafts(monkeypatch, called, [], GREEDY)
    slots = [parts.cache.reserve((0, i), 1, set())[0] for i in (0, 1)]
    assert slots[0].hidden is not None
    slots[0].hidden = torch.full_like(slots[0].hidden, torch.nan)
    with structlog.testing.capture_logs() as logs:
        parts.chain.draft([ChainRequest(slot, 18 + i, 3, GREEDY) for i, slot in enumerate(slots)])
    assert not logs


@pytest.mark.parametrize("wrong", ["stale", "fails"])
def test_a_graph_that_draws_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    def record(work: Work) -> tuple[Tensors, Replay]:
        if wrong == "fails":
            raise RuntimeError("operation not permitted when stream is capturing\nat ...")
        return work(), lambda: None

    batches = [[3, 2], [4]]
    wanted, _ = drafts(monkeypatch, None, batches, DRAWN)
    with structlog.testing.capture_logs() as logs:
        got, _ = drafts(monkeypatch, record, batches, DRAWN)
    alike(got, wanted)
    assert len(logs) == 1
    assert "\n" not in logs[0]["reason"]


def test_penalties_and_many_chains_are_drafted_operator_by_operator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = Counting()
    _, parts = drafts(monkeypatch, record, [], GREEDY)
    slot, opening = prepared(parts, random_text(20, 0), 18), Opening(3, 6, presence_penalty=1.0)
    penalties = parts.chain.penalties(opening)
    parts.chain.draft([ChainRequest(slot, 18, 3, opening, penalties)])
    parts.chain.draft([ChainRequest(slot, 18, 3, GREEDY)] * 65)
    assert not record.shapes


@pytest.mark.parametrize("window", [None, 4])
@torch.inference_mode()
def test_chains_neither_wait_for_their_device_nor_mix_it_with_others(window: int | None) -> None:
    """On `meta`, which holds no numbers, whatever asks for one fails."""
    device = torch.device("meta")
    config = tiny_config(vocab_size=128, sliding_window=window)
    module = tiny_drafter(config).eval().requires_grad_(False).to(device)
    fused = FusedDrafter(module, torch.randn(128, 16, device=device), 128)
    vocabulary = DraftVocabulary(torch.arange(40), 128)
    vocabulary.target_ids = vocabulary.target_ids.to(device)
    row = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    chain = Chain(fused, vocabulary, KvCache(*row, torch.float32, device, 1 << 20), called)
    numbers = torch.zeros(3, 5, dtype=torch.int64, device=device)
    noise = Noise(numbers[0], numbers[1], numbers[2], torch.zeros(5, device=device))
    chains = Chains(torch.zeros(5, config.hidden_size, device=device), numbers, 4, noise)
    winners, shares = chain._on_device(chains)
    assert winners.is_meta
    assert winners.shape == shares.shape == (4, 5)
