"""The drafter as a port of the process that it is in."""

import queue
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import torch
from prometheus_client import REGISTRY

from drafter_svc.build import Drafter
from drafter_svc.service.in_process import LocalDrafter
from speckernels.device import device_name
from specwire.handshake import TargetIdentity
from specwire.local_drafter import LocalSetup
from specwire.messages import CatchUpAck, DrafterDown, DrafterUp, DraftEvent, Proposals, ResendFrom
from tests.drafter_svc.test_build import checkpoint
from tests.support.drafter_fixtures import DESCRIPTION, Parts, greedy, random_text

TARGET = TargetIdentity("feed", 128, 16)


@dataclass
class Running:
    """A port over tiny parts, and what it delivered."""

    parts: Parts
    target: TargetIdentity = TARGET
    events: "queue.SimpleQueue[DraftEvent]" = field(default_factory=queue.SimpleQueue)

    def __post_init__(self) -> None:
        self.port = LocalDrafter(Drafter(self.parts.worker, DESCRIPTION), self.target)

    def start(self) -> "Running":
        self.port.start(self.events.put)
        return self

    def next(self) -> Any:
        return self.events.get(timeout=10)

    def linked(self) -> int:
        event = self.start().next()
        assert isinstance(event, DrafterUp)
        assert event.welcome.aux_layer_ids == (1, 2, 3)
        return event.link


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    running = Running(Parts())
    yield running
    await running.port.close()


def links() -> float | None:
    return REGISTRY.get_sample_value("holdcourse_drafter_links")


def test_a_round_is_answered_from_a_copy_of_its_rows(running: Running) -> None:
    link = running.linked()
    texts = [random_text(20, 1), random_text(20, 2)]
    sent = [texts[0].extend(1, 0, 9, 4), texts[1].extend(2, 0, 5, 2)]
    memory = [rows.clone() for _, rows in sent]
    running.port.round(link, [extend for extend, _ in sent], memory, ())
    for rows in memory:
        rows.fill_(torch.nan)  # the verifier's memory goes to other sequences
    answer = running.next()
    assert isinstance(answer, Proposals)
    assert answer.cost.compute_us > 0
    for draft, text, base, length in zip(answer.drafts, texts, (9, 5), (4, 2), strict=True):
        assert draft.base == base
        assert list(draft.tokens) == running.parts.slow_draft(text, base, length, greedy).tokens
    assert links() == 1


def test_bulk_rows_are_acknowledged_and_a_closed_sequence_needs_them_again(
    running: Running,
) -> None:
    link = running.linked()
    text = random_text(300, 2)
    extend, rows = text.extend(5, 0, 280)
    memory = rows.clone()
    running.port.bulk(link, extend, memory)
    memory.zero_()
    assert running.next() == CatchUpAck(5, 280, 280, 280, ANY)
    extend, rows = text.extend(5, 280, 283, 3)
    running.port.round(link, [extend], [rows], ())
    expected = running.parts.slow_draft(text, 283, 3, greedy).tokens
    assert list(running.next().drafts[0].tokens) == expected
    extend, rows = text.extend(5, 283, 284, 3)
    running.port.round(link, [extend], [rows], (5,))
    assert running.next().needs == (ResendFrom(5, 0, 284),)


def test_what_is_meant_for_another_link_is_dropped(running: Running) -> None:
    link = running.linked()
    text = random_text(20, 1)
    for at in (link + 1, link):
        extend, rows = text.extend(at, 0, 9, 1)
        running.port.bulk(at, *text.extend(9, 0, 3))
        running.port.round(at, [extend], [rows], ())
    events = [running.next(), running.next()]
    assert CatchUpAck(9, 3, 3, 3, ANY) in events
    (answer,) = (event for event in events if isinstance(event, Proposals))
    assert [draft.seq for draft in answer.drafts] == [link]
    assert running.events.empty()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"fingerprint": "beef"}, "fingerprint feed there, beef here."),
        ({"vocab_size": 129}, "vocab_size is 128 there, 129 here."),
        ({"hidden_size": 32}, "hidden_size is 16 there, 32 here."),
    ],
)
async def test_another_target_is_refused_in_the_sentence_of_the_handshake(
    changes: dict[str, Any], sentence: str
) -> None:
    running = Running(Parts(), replace(TARGET, **changes)).start()
    refused = f"The drafter was made for another target: {sentence}"
    assert running.next() == DrafterDown(refused)
    extend, rows = random_text(20, 1).extend(1, 0, 9, 4)
    running.port.round(1, [extend], [rows], ())
    await running.port.close()
    assert running.events.empty()


def broken(*_: object) -> Any:
    raise RuntimeError("broken on purpose")


@pytest.mark.parametrize("call", ["serve", "fill"])
def test_a_drafter_that_fails_unlinks_and_harms_nobody(
    running: Running, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    link = running.linked()
    monkeypatch.setattr(running.parts.worker, call, broken)
    extend, rows = random_text(20, 1).extend(1, 0, 9, 4)
    if call == "serve":
        running.port.round(link, [extend], [rows], ())
    else:
        running.port.bulk(link, extend, rows)
    assert isinstance(running.next(), DrafterDown)
    assert links() == 0
    running.port.round(link, [extend], [rows], ())
    assert running.events.empty()


def test_a_drafter_that_cannot_warm_up_never_links(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running.parts.worker, "warm_up", broken)
    assert isinstance(running.start().next(), DrafterDown)
    assert running.events.empty()


Load = Callable[..., LocalDrafter]


@pytest.fixture
def load(tmp_path: Path, tiny_llama: Path) -> Load:
    def load(**changes: Any) -> LocalDrafter:
        folder = checkpoint(tmp_path, target_fingerprint="")
        shape = TargetIdentity("any", 97, 32)
        setup = LocalSetup(folder, str(tiny_llama), shape, "float32", "cpu", False)
        return LocalDrafter.load(replace(setup, **changes))

    return load


async def test_loaded_from_files_it_follows_the_drafters_variables(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    row_bytes = 2 * 2 * 8 * 4
    monkeypatch.setenv("HOLDCOURSE_LOOKUP", "5")
    monkeypatch.setenv("HOLDCOURSE_DRAFTER_KV_MEMORY", str(100 * row_bytes))
    monkeypatch.setenv("HOLDCOURSE_DRAFTER", "elsewhere")
    port = load()
    events: queue.SimpleQueue[DraftEvent] = queue.SimpleQueue()
    port.start(events.put)
    linked = events.get(timeout=10)
    await port.close()
    assert isinstance(linked, DrafterUp)
    assert (linked.welcome.lookup_match, linked.welcome.max_length) == (5, 100 - 16)
    assert linked.welcome.device == device_name(torch.device("cpu"))


def test_it_runs_where_the_verifier_does_unless_told_otherwise(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="nowhere"):
        load(device="nowhere")
    monkeypatch.setenv("HOLDCOURSE_DRAFTER_DEVICE", "cpu")
    load(device="nowhere")
