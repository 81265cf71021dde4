"""The loss against one that is computed column by column from the index table."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from drafter_svc.train.data import Batch
from drafter_svc.train.loss import chain_loss, soft_cross_entropy, teach
from drafter_svc.train.ttt import ChainStep, unroll
from tests.drafter_svc.tiny import tiny_config, tiny_drafter

WIDTH, VOCAB, LENGTH, STEPS = 16, 64, 12, 3
DRAFT_IDS = torch.arange(40) + 10


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(3)
    answer = torch.tensor([[False] * 3 + [True] * 9, [False] * 5 + [True] * 4 + [False] * 3])
    return Batch(torch.randint(0, VOCAB, (2, LENGTH)), answer)


def test_teacher_is_the_softmax_over_the_draft_vocabulary(batch: Batch) -> None:
    final, head = torch.randn(2, LENGTH, WIDTH), torch.randn(VOCAB, WIDTH)
    teacher = teach(batch, final, head, DRAFT_IDS)
    for row in range(2):
        for position in range(LENGTH):
            at = int(teacher.row[row, position])
            predicts = position + 1 < LENGTH and bool(batch.answer[row, position + 1])
            assert (at >= 0) == predicts
            if not predicts:
                continue
            logits = head @ final[row, position]
            expected = logits[DRAFT_IDS].softmax(-1)
            torch.testing.assert_close(teacher.probabilities[at], expected, rtol=1e-4, atol=1e-6)
            best = int(logits.argmax())
            inside = DRAFT_IDS.tolist().index(best) if best in DRAFT_IDS else -1
            assert int(teacher.best[at]) == inside


def test_soft_cross_entropy_and_overlap_by_definition() -> None:
    logits, p = torch.randn(4, 9), torch.randn(4, 9).softmax(-1)
    loss, overlap = soft_cross_entropy(logits, p)
    q = logits.exp() / logits.exp().sum(-1, keepdim=True)
    for row in range(4):
        pairs = list(zip(p[row].tolist(), q[row].tolist(), strict=True))
        assert float(loss[row]) == pytest.approx(-sum(a * math.log(b) for a, b in pairs), 1e-4)
        assert float(overlap[row]) == pytest.approx(sum(min(a, b) for a, b in pairs), 1e-4)


def test_chain_loss_is_the_sum_over_the_index_table(batch: Batch) -> None:
    drafter, table = tiny_drafter(tiny_config()), nn.Embedding(VOCAB, WIDTH)
    features = torch.randn(2, LENGTH, 3 * WIDTH)
    final, head = torch.randn(2, LENGTH, WIDTH), torch.randn(VOCAB, WIDTH)
    teacher = teach(batch, final, head, DRAFT_IDS)
    columns = torch.arange(2, LENGTH - 1, 2)
    steps = list(unroll(drafter, table, batch, features, steps=STEPS, columns=columns))
    total, means = chain_loss(drafter, steps, teacher)

    survival: dict[tuple[int, int], float] = {}
    expected = 0.0
    for k, step in enumerate(steps):
        terms, alive = [], {}
        for row in range(2):
            for at, i in enumerate(step.columns.tolist()):
                if i + 2 + k >= LENGTH or not bool(batch.answer[row, i + 1 : i + 3 + k].all()):
                    continue
                teacher_logits = head @ final[row, i + 1 + k]
                if int(teacher_logits.argmax()) not in DRAFT_IDS:
                    continue
                p = teacher_logits[DRAFT_IDS].softmax(-1)
                log_q = drafter.logits(step.hidden[row, at]).log_softmax(-1).detach()
                weight = 1.0 if k == 0 else survival.get((row, i), 0.0)
                terms.append((weight, float(-(p * log_q).sum())))
                alive[row, i] = weight * float(torch.minimum(p, log_q.exp()).sum())
        expected += sum(weight * loss for weight, loss in terms) / len(terms)
        assert means[k] == pytest.approx(sum(loss for _, loss in terms) / len(terms), 1e-4)
        survival = alive
    assert float(total.detach()) == pytest.approx(expected, 1e-4)


def test_positions_outside_the_mask_change_nothing(batch: Batch) -> None:
    drafter = tiny_drafter(tiny_config())
    final, head = torch.randn(2, LENGTH, WIDTH), torch.randn(VOCAB, WIDTH)
    hidden = torch.randn(2, LENGTH - 1, WIDTH)
    columns = torch.arange(LENGTH - 1)
    live = batch.answer[:, 1:].clone()
    live[:, -1] = False
    teacher = teach(batch, final, head, DRAFT_IDS)

    def chain(states: torch.Tensor) -> Iterator[ChainStep]:
        yield ChainStep(states, columns, (columns + 1).expand(2, -1), live & batch_label(batch))

    changed = hidden.clone()
    changed[~(live & batch_label(batch))] += 100
    first, _ = chain_loss(drafter, chain(hidden), teacher)
    second, _ = chain_loss(drafter, chain(changed), teacher)
    assert torch.equal(first, second)


def batch_label(batch: Batch) -> torch.Tensor:
    label = torch.zeros(2, LENGTH - 1, dtype=torch.bool)
    label[:, :-1] = batch.answer[:, 2:]
    return label


def test_a_batch_without_a_lesson_has_no_gradient() -> None:
    drafter = tiny_drafter(tiny_config())
    batch = Batch(torch.ones(1, 4, dtype=torch.int64), torch.tensor([[False] * 3 + [True]]))
    teacher = teach(batch, torch.randn(1, 4, WIDTH), torch.randn(VOCAB, WIDTH), DRAFT_IDS)
    steps = unroll(
        drafter,
        nn.Embedding(VOCAB, WIDTH).requires_grad_(False),
        batch,
        torch.randn(1, 4, 3 * WIDTH),
        steps=1,
        columns=torch.tensor([2]),
    )
    total, means = chain_loss(drafter, steps, teacher)
    assert not total.requires_grad
    assert math.isnan(means[0])
