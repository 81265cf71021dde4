"""Lessons: order, work shared between threads, and states that cannot be learned from."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from drafter_svc.train.data import Document
from drafter_svc.train.lesson import Classroom, Lesson, ahead
from drafter_svc.train.source import Captured
from drafter_svc.train.target import LocalSource, load_target

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


def room(*states: Captured, prompts: bool = False) -> Classroom:
    torch.manual_seed(0)
    return Classroom(
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


def test_local_states_do_not_depend_on_the_company(tiny_llama: Path) -> None:
    target = load_target(str(tiny_llama))
    source = LocalSource(target)
    texts = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
    together = source.capture(texts, (1, 3))
    for ids, captured in zip(texts, together, strict=True):
        (alone,) = source.capture([ids], (1, 3))
        assert torch.equal(captured.features, alone.features)
        features, final = target.capture(torch.tensor([ids]), (1, 3))
        assert torch.equal(captured.features, features[0])
        assert torch.equal(captured.final, final[0])
    with pytest.raises(ValueError, match="over the target's limit of 512"):
        source.capture([[1] * 513], (1, 3))


@pytest.mark.parametrize("share", [True, False])
def test_lessons_come_in_order_whoever_prepares_them(share: bool) -> None:
    workers = set()

    def prepare(group: list[int]) -> Lesson:
        workers.add(threading.current_thread())
        time.sleep(0.02)
        return group  # type: ignore[return-value]

    groups = [[number] for number in range(12)]
    lessons = ahead(prepare, groups, threads=1, share=lambda: share)
    assert list(lessons) == groups
    assert (threading.main_thread() in workers) == share


def test_a_failure_reaches_the_caller() -> None:
    def prepare(group: list[int]) -> Lesson:
        raise ValueError(f"group {group}")

    with pytest.raises(ValueError, match=r"group \[5\]"):
        next(ahead(prepare, [[5]], threads=1, share=lambda: False))
