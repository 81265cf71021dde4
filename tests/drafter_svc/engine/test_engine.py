import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import cast
from unittest.mock import ANY

import pytest
import torch
from prometheus_client import REGISTRY

from drafter_svc.engine import engine as engine_module
from drafter_svc.engine.engine import BULK_PIECE, Engine
from drafter_svc.engine.messages import Answers, BulkMessage, RoundMessage
from drafter_svc.engine.worker import Worker
from specwire.messages import CatchUpAck, Proposals
from tests.support.drafter_fixtures import Parts, greedy, random_text

Answer = Proposals | CatchUpAck


@pytest.fixture
def parts() -> Parts:
    return Parts()


@pytest.fixture
def engine(parts: Parts) -> Iterator[Engine]:
    engine = Engine(parts.worker, on_failure=lambda: pytest.fail("engine failed"))
    engine.start()
    yield engine
    engine.stop()


def linked(engine: Engine, link: int = 1) -> "queue.SimpleQueue[Answer]":
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    engine.open_link(link, answers.put)
    return answers


def test_answers_carry_draft_and_cost(engine: Engine, parts: Parts) -> None:
    answers = linked(engine)
    text = random_text(20, 1)
    extend, features = text.extend(5, 0, 10, 4)
    engine.round(1, [extend], features, ())
    answer = answers.get(timeout=10)
    assert isinstance(answer, Proposals)
    assert list(answer.drafts[0].tokens) == parts.slow_draft(text, 10, 4, greedy).tokens
    assert answer.cost.compute_us > 0
    assert answers.empty()


def test_a_round_is_counted_once_it_has_been_answered(engine: Engine) -> None:
    def counts() -> list[float | None]:
        names = ("compute_seconds_count", "queue_seconds_count", "batch_size_sum", "chains_total")
        return [REGISTRY.get_sample_value(f"holdcourse_drafter_{name}") for name in names]

    before, answered = counts(), queue.SimpleQueue[list[float | None]]()
    engine.open_link(1, lambda answer: answered.put(counts()))
    extends, features = zip(*(random_text(20, s).extend(s, 0, 9, 3) for s in (1, 2)), strict=True)
    engine.round(1, extends, torch.cat(features), ())
    assert answered.get(timeout=10) == before
    done = threading.Event()
    engine.flush(done.set)
    assert done.wait(10)
    grown = [after - (was or 0) for was, after in zip(before, counts(), strict=True) if after]
    assert grown == [1, 1, 2, 2]


def test_bulk_then_round_race_to_the_same_draft(engine: Engine, parts: Parts) -> None:
    answers = linked(engine)
    text = random_text(300, 2)
    for start in range(0, 280, 140):
        engine.bulk(1, *text.extend(5, start, start + 140))
    assert [answers.get(timeout=10) for _ in range(2)] == [
        CatchUpAck(5, 140, 140, 140, ANY),
        CatchUpAck(5, 280, 280, 140, ANY),
    ]
    extend, features = text.extend(5, 280, 283, 3)
    engine.round(1, [extend], features, ())
    answer = answers.get(timeout=10)
    assert isinstance(answer, Proposals)
    assert list(answer.drafts[0].tokens) == parts.slow_draft(text, 283, 3, greedy).tokens


def test_closing_a_link_twice_and_using_it_after_harms_nobody(engine: Engine) -> None:
    gone, here = linked(engine, 1), linked(engine, 2)
    text = random_text(20, 3)
    engine.close_link(1)
    engine.close_link(1)
    for link in (1, 2):
        extend, features = text.extend(5, 0, 10, 4)
        engine.round(link, [extend], features, (6,))
        engine.bulk(link, *text.extend(8, 0, 3))
    assert isinstance(here.get(timeout=10), Proposals)
    assert here.get(timeout=10) == CatchUpAck(8, 3, 3, 3, ANY)
    assert gone.empty()


def test_stop_serves_what_has_come(parts: Parts) -> None:
    engine = Engine(parts.worker, on_failure=lambda: None)
    engine.start()
    answers = linked(engine)
    text = random_text(300, 4)
    engine.bulk(1, *text.extend(5, 0, 290))
    extend, features = text.extend(6, 0, 10, 4)
    engine.round(1, [extend], features, ())
    engine.stop()
    kinds = [type(answers.get_nowait()) for _ in range(2)]
    assert sorted(kind.__name__ for kind in kinds) == ["CatchUpAck", "Proposals"]


class Recorder:
    """A worker that notes what it was given, and holds the first piece of bulk until told."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.fails = False

    def warm_up(self) -> None: ...
    def count(self, served: Iterable[Answers]) -> None: ...
    def report(self) -> None: ...
    def open_link(self, link: int) -> None: ...

    def serve(self, rounds: Sequence[RoundMessage]) -> dict[int, Answers]:
        if self.fails:
            raise RuntimeError("broken on purpose")
        self.calls.append(f"round {sorted(message.link for message in rounds)}")
        return {message.link: Answers() for message in rounds}

    def fill(self, pieces: Sequence[BulkMessage]) -> list[CatchUpAck | None]:
        rows = [len(piece.extend.tokens) for piece in pieces]
        self.calls.append(f"bulk {rows}")
        self.begun.set()
        self.go_on.wait(10)
        return [CatchUpAck(p.extend.seq, p.extend.stop, p.extend.stop, p.rows) for p in pieces]


def test_rounds_go_between_pieces_of_bulk_and_share_a_batch() -> None:
    recorder = Recorder()
    engine = Engine(cast(Worker, recorder), on_failure=lambda: None)
    engine.start()
    answers = [linked(engine, link) for link in (0, 1, 2)]
    text = random_text(2 * BULK_PIECE + 20, 5)
    engine.bulk(0, *text.extend(5, 0, 2 * BULK_PIECE + 10))
    assert recorder.begun.wait(10)
    # While a piece runs, two verifiers send rounds and one more bulk message comes.
    engine.round(1, [], None, ())
    engine.round(2, [], None, ())
    engine.bulk(1, *text.extend(6, 0, 7))
    recorder.go_on.set()
    assert isinstance(answers[2].get(timeout=10), Proposals)
    rows = 2 * BULK_PIECE + 10
    assert answers[0].get(timeout=10) == CatchUpAck(5, rows, rows, rows, ANY)
    engine.stop()
    assert recorder.calls == [
        f"bulk [{BULK_PIECE}]",
        "round [1, 2]",
        f"bulk [{BULK_PIECE}]",
        "bulk [10, 7]",
    ]


def test_flush_waits_for_rounds_and_bulk() -> None:
    recorder = Recorder()
    recorder.go_on.set()
    engine = Engine(cast(Worker, recorder), on_failure=lambda: None)
    answers = linked(engine, 1)
    seen: list[int] = []
    done = threading.Event()
    engine.round(1, [], None, ())
    engine.bulk(1, *random_text(400, 6).extend(5, 0, 390))
    engine.flush(lambda: seen.append(answers.qsize()))
    engine.flush(done.set)
    engine.start()
    assert done.wait(10)
    engine.stop()
    assert seen == [2]


def test_failure_is_reported() -> None:
    recorder = Recorder()
    recorder.fails = True
    failed = threading.Event()
    engine = Engine(cast(Worker, recorder), on_failure=failed.set)
    engine.start()
    engine.round(1, [], None, ())
    assert failed.wait(10)


def test_an_ack_tells_of_all_that_its_links_rows_took(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    recorder.go_on.set()
    engine = Engine(cast(Worker, recorder), on_failure=lambda: None)
    times = iter(range(100))
    monkeypatch.setattr(engine_module, "time", SimpleNamespace(monotonic=lambda: next(times)))
    here, there = linked(engine, 1), linked(engine, 2)
    text = random_text(2 * BULK_PIECE, 6)
    whole, part = BULK_PIECE + BULK_PIECE // 2, BULK_PIECE // 4
    engine.bulk(1, *text.extend(5, 0, whole))
    engine.bulk(2, *text.extend(6, 0, part))
    engine.bulk(1, *text.extend(7, 0, part))
    engine.start()
    # Two pieces of a second each: one of the first message only, and one of all three.
    assert [here.get(timeout=10) for _ in range(2)] == [
        CatchUpAck(5, whole, whole, whole, 1_500_000),
        CatchUpAck(7, part, part, part, 250_000),
    ]
    assert there.get(timeout=10) == CatchUpAck(6, part, part, part, 250_000)
    engine.stop()
