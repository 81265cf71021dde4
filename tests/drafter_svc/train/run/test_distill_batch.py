"""Lessons: order, work shared between threads, and states that cannot be learned from."""

import dataclasses
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from drafter_svc.train.data.documents import Document
from drafter_svc.train.run.distill_batch import DistillBatch, TargetFeatures, TargetOutputs, ahead
from drafter_svc.train.target.feature_source import Captured
from drafter_svc.train.target.local_source import LocalSource
from drafter_svc.train.target.target import load_target

DOCUMENTS = [Document([3, 4, 5, 6], [False, True, True, True]), Document([7, 8], [False, True])]
WIDTH = 6


class Scripted:
    """A source of given states."""

    def __init__(self, *states: Captured) -> None:
        self.states = list(states)

    def capture(
        self, documents: Sequence[Sequence[int]], aux_layers: tuple[int, ...]
    ) -> list[Captured]:
        return [self.states.pop(0) for _ in documents]


def room(*states: Captured, prompts: bool = False) -> TargetFeatures:
    torch.manual_seed(0)
    return TargetFeatures(
        Scripted(*states), (1, 2), torch.randn(11, WIDTH), prompts=prompts, totals=False
    )


def states(tokens: int) -> Captured:
    return Captured(torch.randn(tokens, 2 * WIDTH), torch.randn(tokens, WIDTH))


@pytest.mark.parametrize("prompts", [True, False])
def test_the_target_judges_what_predicts_a_taught_token(prompts: bool) -> None:
    captured = states(4)
    classroom = room(captured, states(2), prompts=prompts)
    documents = [Document([3, 4, 5, 6], [False, False, True, False]), DOCUMENTS[1]]
    lesson = classroom.prepare(documents)
    best = (captured.final @ classroom.head.T).argmax(-1).tolist()
    expected = [*best[:3], -1] if prompts else [-1, best[1], -1, -1]
    assert lesson.verdicts.best[:4].tolist() == expected
    assert lesson.features.shape == (6, 2 * WIDTH)
    assert lesson.batch.lengths == (4, 2)


@pytest.mark.parametrize("part", ["features", "final"])
def test_states_that_are_not_finite_are_refused(part: str) -> None:
    captured = states(4)
    getattr(captured, part)[2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"not finite for the text of ids \[3, 4, 5, 6\]"):
        room(captured).prepare(DOCUMENTS[:1])


def test_states_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="have shapes"):
        room(Captured(torch.randn(4, WIDTH), torch.randn(4, WIDTH))).prepare(DOCUMENTS[:1])


def test_packed_documents_have_the_states_of_documents_alone(tiny_llama: Path) -> None:
    reference, target = load_target(str(tiny_llama)), load_target(str(tiny_llama))
    for loaded in (reference, target):
        loaded.model.float()
    source = LocalSource(target)
    texts = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
    for ids, captured in zip(texts, source.capture(texts, (1, 3)), strict=True):
        features, final = reference.capture(torch.tensor([ids]), (1, 3))
        torch.testing.assert_close(captured.features, features[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(captured.final, final[0], rtol=1e-4, atol=1e-5)


def test_the_last_state_is_the_one_before_the_final_norm(tiny_llama: Path) -> None:
    target = load_target(str(tiny_llama))
    target.model.float()
    (captured,) = LocalSource(target).capture([[5, 6, 7, 8, 9]], (1, 4))
    last = captured.features[:, 32:]
    with torch.no_grad():
        torch.testing.assert_close(target.model.base_model.norm(last), captured.final)
    assert not torch.allclose(last, captured.final, rtol=0.1, atol=0.1)


def test_states_of_forwards_at_once_are_kept_apart(tiny_llama: Path) -> None:
    target = load_target(str(tiny_llama))
    source, texts = LocalSource(target), [[5, 6, 7, 8], [9, 8, 7]]
    alone, other = (source.capture([text], (1, 4))[0] for text in texts)
    between: list[Captured] = []

    def meanwhile(*_: object) -> None:
        if not between:
            between.append(alone)
            between[0] = source.capture([texts[1]], (1, 4))[0]

    hook = target.model.base_model.layers[2].register_forward_pre_hook(meanwhile)
    (around,) = source.capture([texts[0]], (1, 4))
    hook.remove()
    assert torch.equal(around.features, alone.features)
    assert torch.equal(between[0].features, other.features)


def test_more_documents_than_a_forward_takes_keep_their_order(tiny_llama: Path) -> None:
    source = LocalSource(load_target(str(tiny_llama)))
    texts = [[token] * 400 for token in range(3, 11)]
    captured = source.capture(texts, (1,))
    for ids, states in zip(texts, captured, strict=True):
        (alone,) = source.capture([ids], (1,))
        torch.testing.assert_close(states.features, alone.features, rtol=0.05, atol=0.05)
    with pytest.raises(ValueError, match="over the target's limit of 512"):
        source.capture([[1] * 513], (1, 3))


class Store:
    """Materials in memory."""

    def __init__(self) -> None:
        self.kept: dict[int, TargetOutputs] = {}

    def get(self, document: int) -> TargetOutputs | None:
        return self.kept.get(document)

    def put(self, document: int, material: TargetOutputs) -> None:
        self.kept[document] = material


def test_the_store_is_asked_when_told_and_filled_by_what_it_lacks() -> None:
    store = Store()
    classroom = dataclasses.replace(room(states(4), states(2), states(2), states(4)), store=store)
    first = classroom.prepare(DOCUMENTS, [8, 9])
    again = classroom.prepare(DOCUMENTS, [8, 9], look=True)
    assert torch.equal(first.features, again.features)
    del store.kept[9]
    mixed = classroom.prepare(DOCUMENTS, [8, 9], look=True)
    assert torch.equal(first.features[:4], mixed.features[:4])
    assert not torch.equal(first.features[4:], mixed.features[4:])
    assert sorted(store.kept) == [8, 9]
    classroom.source.capture([[3] * 4], (1, 2))
    with pytest.raises(IndexError):  # not asked to look: all is computed
        classroom.prepare(DOCUMENTS, [8, 9])


def test_nothing_of_an_epoch_begins_before_the_one_ahead_is_done() -> None:
    done: list[int] = []

    def prepare(group: list[int]) -> DistillBatch:
        assert len(done) >= group[0] // 3 * 3
        time.sleep(0.01)
        done.append(group[0])
        return group  # type: ignore[return-value]

    groups: list[list[int] | None] = []
    for number in range(9):
        groups += [[number], None] if number % 3 == 2 else [[number]]
    assert len(list(ahead(prepare, groups, threads=1, share=lambda: True))) == 9


@pytest.mark.parametrize("share", [True, False])
def test_lessons_come_in_order_whoever_prepares_them(share: bool) -> None:
    workers = set()

    def prepare(group: list[int]) -> DistillBatch:
        workers.add(threading.current_thread())
        time.sleep(0.02)
        return group  # type: ignore[return-value]

    groups = [[number] for number in range(12)]
    lessons = ahead(prepare, groups, threads=1, share=lambda: share)
    assert [list(lesson) for lesson in lessons] == groups  # type: ignore[call-overload]
    assert (threading.main_thread() in workers) == share


def test_a_failure_reaches_the_caller() -> None:
    def prepare(group: list[int]) -> DistillBatch:
        raise ValueError(f"group {group}")

    with pytest.raises(ValueError, match=r"group \[5\]"):
        next(ahead(prepare, [[5]], threads=1, share=lambda: False))
