"""Chains as on a GPU: recorded for each shape of a batch, tried, and never waiting for a device."""

import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import structlog
import torch
from torch.overrides import TorchFunctionMode

import speckernels as kernels
from drafter_svc.engine import worker
from drafter_svc.engine.messages import RoundMessage
from drafter_svc.engine.worker import Worker
from drafter_svc.inference import chain
from drafter_svc.inference.attention import Attention
from drafter_svc.inference.chain import Chain, ChainOutput
from drafter_svc.inference.chain_runner import ChainRequest, _Shape
from drafter_svc.inference.entry_forward import EntryRows
from drafter_svc.inference.fused_model import FusedDrafter
from drafter_svc.inference.kv_cache import KVCache
from drafter_svc.inference.sampling import DraftVocabulary
from drafter_svc.model.feature_projection import ProjectionWeights
from speckernels import eager_capture
from speckernels.cuda_graph import Replay, Tensors, Work
from specwire.messages import SequenceContext
from tests.drafter_svc.inference.test_chain import prepared
from tests.support.drafter_fixtures import GREEDY, Parts, random_text
from tests.support.fake_flash_attention import serve_flash
from tests.support.tiny_drafter import tiny_config, tiny_drafter

DRAWN = SequenceContext(3, 6, seed=7, temperature=0.9)


class Counting:
    """A recorder that keeps what it recorded: draft tokens at most and chains; rows of entries.

    Of what was replayed, in the trial of a graph or later, it keeps the same.
    """

    def __init__(self, fails_after: int | None = None) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.rows: list[int] = []
        self.replayed: list[tuple[int, ...]] = []
        self._fails_after = fails_after

    def __call__(self, work: Work) -> tuple[Tensors, Replay]:
        results, replay = eager_capture(work)
        if len(self.shapes) + len(self.rows) == self._fails_after:
            raise RuntimeError("operation not permitted when stream is capturing\nat ...")
        if results[0].dtype == torch.int64:
            self.shapes.append(tuple(results[0].shape))
        else:
            self.rows.append(len(results[0]))

        def counted() -> None:
            self.replayed.append(tuple(results[0].shape))
            replay()

        return results, counted


@pytest.fixture(autouse=True)
def flash(monkeypatch: pytest.MonkeyPatch) -> None:
    serve_flash(monkeypatch)


def drafts(
    monkeypatch: pytest.MonkeyPatch,
    record: Any,
    batches: Sequence[Sequence[int]],
    opening: SequenceContext,
) -> tuple[list[list[ChainOutput]], Parts]:
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


def alike(got: list[list[ChainOutput]], wanted: list[list[ChainOutput]]) -> None:
    for some, others in zip(got, wanted, strict=True):
        for guess, other in zip(some, others, strict=True):
            assert guess.tokens == other.tokens
            assert guess.confidence == pytest.approx(other.confidence, rel=1e-4)


@pytest.mark.parametrize("opening", [GREEDY, DRAWN])
def test_shapes_are_recorded_once_and_filled_up(
    monkeypatch: pytest.MonkeyPatch, opening: SequenceContext
) -> None:
    record = Counting()
    batches = [[3], [3], [2, 5, 5], [5, 1, 4, 2], [1], [4] * 9, [5, 4, 3], [7, 2], [8, 8]]
    wanted, _ = drafts(monkeypatch, None, batches, opening)
    got, _ = drafts(monkeypatch, record, batches, opening)
    alike(got, wanted)
    assert record.shapes == [(3, 1), (5, 4), (1, 1), (4, 16), (8, 2)]
    assert record.rows == [32]


def test_a_chain_that_ends_early_writes_nothing_behind_its_slab(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, parts = drafts(monkeypatch, eager_capture, [], GREEDY)
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
    _, parts = drafts(monkeypatch, eager_capture, [], GREEDY)
    slots = [parts.cache.reserve((0, i), 1, set())[0] for i in (0, 1)]
    parts.state(slots[0]).fill_(torch.nan)
    with structlog.testing.capture_logs() as logs:
        parts.chain.draft([ChainRequest(slot, 18 + i, 3, GREEDY) for i, slot in enumerate(slots)])
    assert not logs


@pytest.mark.parametrize("wrong", ["stale", "fails"])
def test_a_graph_that_gives_something_else_is_kept_but_not_used(
    monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    """Dropped, it would take memory along that other graphs were recorded in."""
    replays: list[weakref.ref[Replay]] = []

    def record(work: Work) -> tuple[Tensors, Replay]:
        if wrong == "fails":
            raise RuntimeError("operation not permitted when stream is capturing\nat ...")
        results = work()

        def replay() -> None:
            assert results

        replays.append(weakref.ref(replay))
        return results, replay

    batches = [[3, 2], [4]]
    wanted, _ = drafts(monkeypatch, None, batches, DRAWN)
    with structlog.testing.capture_logs() as logs:
        got, parts = drafts(monkeypatch, record, batches, DRAWN)
    alike(got, wanted)
    assert len(logs) == 1
    assert "\n" not in logs[0]["reason"]
    assert not parts.chain.alive
    assert parts.chain.form == "step by step: recording has failed"
    gc.collect()
    assert all(replay() is not None for replay in replays)
    assert len(replays) == (wrong == "stale")


def test_what_was_recorded_before_a_failure_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    record = Counting(fails_after=2)
    batches = [[3, 2], [4], [3, 3], [1] * 5]
    wanted, _ = drafts(monkeypatch, None, batches, DRAWN)
    with structlog.testing.capture_logs() as logs:
        got, parts = drafts(monkeypatch, record, batches, DRAWN)
    alike(got, wanted)
    assert (record.rows, record.shapes) == ([32], [(3, 2)])
    assert len(logs) == 1
    assert not parts.chain.alive


def test_penalties_are_drafted_operator_by_operator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = Counting()
    _, parts = drafts(monkeypatch, record, [], GREEDY)
    slot, opening = (
        prepared(parts, random_text(20, 0), 18),
        SequenceContext(3, 6, presence_penalty=1.0),
    )
    penalties = parts.chain.open_penalties(opening)
    asked = ChainRequest(slot, 18, 3, opening, penalties)
    (alone,) = parts.chain.draft([asked])
    assert not record.shapes
    # Others in their batch are none the slower for them.
    others = [parts.cache.reserve((0, i), 1, set())[0] for i in range(1, 4)]
    plain = [ChainRequest(other, 18 + i, 4, GREEDY) for i, other in enumerate(others, 1)]
    first, *rest, last = parts.chain.draft([plain[0], asked, *plain[1:]])
    assert record.shapes == [(4, 4)]
    assert rest[0].tokens == alone.tokens
    alike([[first, *rest[1:], last]], [parts.chain.draft(plain)])


def many(parts: Parts, lengths: Sequence[int], opening: SequenceContext) -> list[ChainOutput]:
    """What as many chains as lengths draft, each of its own sequence."""
    requests = []
    for i, length in enumerate(lengths):
        base = 3 + i % 5
        slot = prepared(parts, random_text(12, i), base, i)
        requests.append(ChainRequest(slot, base, length, opening))
    return parts.chain.draft(requests)


@pytest.mark.parametrize("opening", [GREEDY, DRAWN])
def test_chains_beyond_the_largest_graph_take_several_replays(
    monkeypatch: pytest.MonkeyPatch, opening: SequenceContext
) -> None:
    lengths = [1 + i % 6 for i in range(70)]
    wanted = many(Parts(rows=70 * 64), lengths, opening)
    record = Counting()
    monkeypatch.setattr(Parts, "record", staticmethod(record))
    parts = Parts(rows=70 * 64)
    assert many(parts, lengths, opening)
    # The six shortest are left over.
    assert record.shapes == [(6, 64), (1, 8)]
    record.replayed.clear()
    alike([many(parts, lengths, opening)], [wanted])
    assert [shape for shape in record.replayed if shape[1] != 16] == [(6, 64), (1, 8)]
    assert len({guess.tokens for guess in wanted}) > 6


def test_entries_beyond_the_largest_graph_take_several_replays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also those of a sequence whose rows are not all in one of them."""
    texts = [random_text(130, i) for i in range(4)]

    def left(parts: Parts) -> tuple[torch.Tensor, list[torch.Tensor]]:
        slots = [parts.cache.reserve((0, i), 128, set())[0] for i in range(4)]
        batch = [EntryRows(s, 0, t.tokens[1:121]) for s, t in zip(slots, texts, strict=True)]
        sums = parts.chain.append(batch, [text.features[:120] for text in texts])
        return sums, [parts.state(slot).clone() for slot in slots]

    wanted = left(Parts())
    record = Counting()
    monkeypatch.setattr(Parts, "record", staticmethod(record))
    parts = Parts()
    left(parts)
    assert record.rows == [256]
    record.replayed.clear()
    sums, states = left(parts)
    assert record.replayed == [(256, 16)] * 2
    assert torch.allclose(sums, wanted[0], atol=1e-4)
    assert len(sums) == 480
    for state, other in zip(states, wanted[1], strict=True):
        assert torch.allclose(state, other, rtol=1e-3, atol=1e-4)


def test_rows_of_ended_chains_may_keep_theirs_in_any_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They share a slot, and on a GPU nothing says whose keys and values stay there."""
    lengths = [6, 1, 2, 1, 3]
    wanted, _ = drafts(monkeypatch, None, [lengths], GREEDY)
    generator, kept = torch.Generator().manual_seed(1), Attention.keep
    spared: list[int] = []

    def keep(self: Attention, kv: torch.Tensor, layer: int) -> None:
        order = torch.randperm(len(kv), generator=generator)
        spared.append(int((self.slots == self.cache.spare).sum()))
        kept(replace(self, slots=self.slots[order]), kv[order], layer)

    monkeypatch.setattr(Attention, "keep", keep)
    record = Counting()
    with structlog.testing.capture_logs() as logs:
        got, parts = drafts(monkeypatch, record, [lengths] * 8, GREEDY)
    assert not logs
    assert parts.chain.alive
    assert record.shapes == [(6, 8)]
    assert max(spared) > 3
    alike(got, wanted * 8)


def test_recorded_chains_draw_zeros_behind_their_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    _, parts = drafts(monkeypatch, eager_capture, [], GREEDY)
    lengths = torch.tensor([4, 0, 2, 1])
    places = torch.stack([torch.full((4,), 17), torch.arange(4) * 64, lengths])
    with torch.inference_mode():
        drawn = parts.chain._runner._recorded(
            _Shape(4, 4, False), (parts.chain._states.rows[:4], places)
        )
    ended = torch.arange(4)[:, None] >= lengths
    for tensor in drawn:
        assert torch.equal(tensor == 0, ended)


def test_a_warm_drafter_has_recorded_what_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    record = Counting()
    _, parts = drafts(monkeypatch, record, [], GREEDY)
    weights = ProjectionWeights.of(parts.module)
    assert weights is not None
    parts.worker.projected = weights.width
    record.rows.clear()
    with structlog.testing.capture_logs() as logs:
        parts.worker.warm_up()
    assert parts.chain.alive
    assert [(entry["log_level"], entry["chains"]) for entry in logs] == [
        ("info", "126 recorded graphs, 14 of entries")
    ]
    # Captured rows filled one of the sizes up before.
    assert sorted(record.rows) == [4, 4, 8, 8, 16, 16, 32, 64, 64, 128, 128, 256, 256]
    assert len(set(record.shapes)) == 63
    recorded, entries = len(record.shapes), len(record.rows)
    for count in (1, 31, 130, 300):
        for features in (parts.chain.zeros(count), torch.zeros(count, weights.width)):
            slot, _ = parts.cache.reserve((0, 1), count, set())
            parts.chain.append([EntryRows(slot, 0, [5] * count)], [features])
    assert len(record.rows) == entries
    for count, length in ((1, 16), (3, 7), (33, 11)):
        slot, _ = parts.cache.reserve((0, 1), 1, set())
        parts.chain.draft([ChainRequest(slot, 19, length, DRAWN)] * count)
    assert len(record.shapes) == recorded


def test_no_projected_rows_are_recorded_where_none_come(monkeypatch: pytest.MonkeyPatch) -> None:
    record = Counting()
    monkeypatch.setattr(Parts, "record", staticmethod(record))
    parts = Parts()
    Worker(parts.chain, parts.cache, parts.worker._sequences, 1).warm_up()
    assert sorted(record.rows) == [4, 8, 16, 32, 64, 128, 256]


@pytest.mark.parametrize(("device", "level"), [("cpu", "info"), ("cuda", "warning")])
def test_chains_of_a_gpu_that_are_not_recorded_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, device: str, level: str
) -> None:
    parts = Parts()
    monkeypatch.setattr(worker, "use", lambda _: None)
    monkeypatch.setattr(Chain, "device", torch.device(device))
    with structlog.testing.capture_logs() as logs:
        parts.worker.warm_up()
    (line,) = logs
    assert line["log_level"] == level
    assert "no kernel for this drafter here, and FlashAttention is for GPUs" in line["chains"]


class Still(Counting):
    """A recorder whose graphs stop to do anything."""

    still = False

    def __call__(self, work: Work) -> tuple[Tensors, Replay]:
        results, replay = super().__call__(work)
        return results, lambda: None if self.still else replay()


class Waits(TorchFunctionMode):
    """Hears of what needs to know what a tensor holds."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in {"tolist", "item", "nonzero", "__bool__", "__int__", "__float__", "equal"}:
            self.heard.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_round_waits_for_its_device_once(monkeypatch: pytest.MonkeyPatch, penalty: float) -> None:
    record, waits = Still(), Waits()
    _, parts = drafts(monkeypatch, record, [], GREEDY)
    parts.worker.open_link(1)
    text, opening = random_text(30, 1), SequenceContext(3, 6, seed=7, temperature=0.9)

    def serve(start: int, stop: int) -> None:
        """A round of a sequence without and of one with a penalty."""
        openings = opening, replace(opening, presence_penalty=penalty)
        sent = [text.extend(seq, start, stop, 3, each) for seq, each in enumerate(openings, 5)]
        features = torch.cat([rows for _, rows in sent])
        message = RoundMessage(1, tuple(extend for extend, _ in sent), features, (), 0.0)
        answers = parts.worker.serve([message])
        assert [len(draft.tokens) for draft in answers[1].drafts] == [3, 3]

    def fetched(*tensors: torch.Tensor) -> list[torch.Tensor]:
        waits.heard.append("fetch")
        return kernels.to_host(*tensors)

    monkeypatch.setattr(chain, "to_host", fetched)
    for start, stop in ((0, 4), (4, 8)):
        serve(start, stop)
    record.still = True
    monkeypatch.setattr(kernels, "paged_attention", lambda query, *_: query.contiguous())
    waits.heard.clear()
    with waits:
        serve(8, 12)
    assert waits.heard[0] == "fetch"
    assert waits.heard.count("fetch") == 1


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
    made = Chain(fused, vocabulary, KVCache(*row, torch.float32, device, 1 << 20), eager_capture)
    numbers = torch.zeros(3, 5, dtype=torch.int64, device=device)
    hidden, temperatures = torch.zeros(5, 16, device=device), torch.zeros(5, device=device)
    winners, shares = made._runner._recorded(
        _Shape(5, 4, True), (hidden, numbers, numbers, temperatures)
    )
    assert winners.is_meta
    assert winners.shape == shares.shape == (4, 5)
    states, sums = made._entries._on_device((5, 48), (torch.zeros(5, 48, device=device), numbers))
    assert states.is_meta
    assert (states.shape, sums.shape) == ((5, 16), (5,))
