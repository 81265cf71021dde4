"""The loss against one that is computed column by column from the index table."""

import math

import pytest
import torch
from torch import Tensor, nn

from drafter_svc.model.eagle import EagleDrafter
from drafter_svc.train.data.documents import Batch, Document, pack
from drafter_svc.train.objective import loss as loss_module
from drafter_svc.train.objective.loss import Objective, chain_loss, count_columns
from drafter_svc.train.objective.teacher import (
    SoftTargets,
    TargetTopTokens,
    draftable,
    judge,
    teach,
)
from drafter_svc.train.objective.ttt import ChainStep, plan_chain, unroll
from tests.support.tiny_drafter import tiny_config, tiny_drafter

WIDTH, VOCAB, STEPS = 16, 64, 3
DRAFT_IDS = torch.arange(40) + 10
VOCABULARY = torch.isin(torch.arange(VOCAB), DRAFT_IDS)


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(3)
    masks = [False] * 3 + [True] * 9, [False] * 5 + [True] * 4 + [False] * 3
    return pack([Document(torch.randint(0, VOCAB, (12,)).tolist(), mask) for mask in masks])


@pytest.fixture
def states() -> tuple[Tensor, Tensor]:
    torch.manual_seed(4)
    return torch.randn(24, WIDTH), torch.randn(VOCAB, WIDTH) / 2


def make_teacher(
    batch: Batch, states: tuple[Tensor, Tensor]
) -> tuple[SoftTargets, TargetTopTokens]:
    final, head = states
    verdicts = judge(final, head, torch.ones(24, dtype=torch.bool), totals=True)
    return teach(final, head[DRAFT_IDS], VOCABULARY, verdicts), verdicts


def test_teacher_is_the_softmax_over_the_draft_vocabulary(
    batch: Batch, states: tuple[Tensor, Tensor]
) -> None:
    final, head = states
    taught = batch.answer
    verdicts = judge(final, head, taught, totals=True)
    teacher = teach(final, head[DRAFT_IDS], VOCABULARY, verdicts)
    assert torch.equal(draftable(verdicts, VOCABULARY), teacher.draftable)
    for position in range(24):
        logits = head @ final[position]
        if not taught[position]:
            assert int(verdicts.best[position]) == -1
            assert not teacher.draftable[position]
            continue
        expected = logits[DRAFT_IDS].softmax(-1)
        got = teacher.probabilities[position]
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
        whole = logits.softmax(-1)[DRAFT_IDS]
        torch.testing.assert_close(got * teacher.mass[position], whole, rtol=1e-4, atol=1e-6)
        assert int(verdicts.best[position]) == int(logits.argmax())
        assert bool(teacher.draftable[position]) == bool(VOCABULARY[logits.argmax()])


def reference(
    drafter: EagleDrafter,
    plan: list[ChainStep],
    hidden: list[Tensor],
    states: tuple[Tensor, Tensor],
    objective: Objective,
) -> tuple[Tensor, list[float]]:
    """(loss, mean divergence per step), a column at a time and by autograd."""
    final, head = states
    survival = dict.fromkeys(range(24), 1.0)
    total, means = torch.zeros(()), []
    for k, (step, layer) in enumerate(zip(plan, hidden, strict=True)):
        divergences, misses, alphas, after = [], [], [], {}
        for at, i in enumerate(step.columns.tolist()):
            if not step.live[at]:
                continue
            logits = head @ final[int(step.teacher[at])]
            inside = bool(VOCABULARY[logits.argmax()])
            if objective.loss == "kl" and not inside:
                continue
            p, whole = logits[DRAFT_IDS].softmax(-1), logits.softmax(-1)[DRAFT_IDS]
            log_q = drafter.logits(layer[at]).log_softmax(-1)
            alpha = torch.minimum(p if objective.loss == "kl" else whole, log_q.exp()).sum()
            weight = survival.get(i, 0.0) if objective.weights == "survival" else 0.8**k
            if inside:
                divergences.append((weight, -(p * log_q).sum()))
            misses.append((weight, 1 - alpha))
            alphas.append(float(alpha.detach()))
            after[i] = survival.get(i, 0.0) * alphas[-1]
        survival = after
        kl = sum(w * d for w, d in divergences) / len(divergences)
        means.append(sum(float(d.detach()) for _, d in divergences) / len(divergences))
        if objective.loss == "lk":
            share = math.exp(-3 * sum(alphas) / len(alphas))
            kl = share * kl + (1 - share) * sum(w * m for w, m in misses) / len(misses)
        total = total + kl
    return total, means


@pytest.mark.parametrize("prompts", [True, False])
@pytest.mark.parametrize("weights", ["survival", "fixed"])
@pytest.mark.parametrize("loss", ["kl", "lk"])
def test_loss_and_gradients_are_those_of_the_index_table(
    monkeypatch: pytest.MonkeyPatch,
    batch: Batch,
    states: tuple[Tensor, Tensor],
    loss: str,
    weights: str,
    prompts: bool,
) -> None:
    monkeypatch.setattr(loss_module, "_ROWS", 5)
    drafter, table = tiny_drafter(tiny_config()), nn.Embedding(VOCAB, WIDTH)
    features, objective = torch.randn(24, 3 * WIDTH), Objective(loss, weights)
    teacher, _ = make_teacher(batch, states)
    plan = plan_chain(batch, STEPS, stride=2, prompts=prompts)
    counts = count_columns(plan, teacher.draftable)
    hidden = list(unroll(drafter, table, batch, features, plan))
    got, means = chain_loss(drafter, plan, hidden, teacher, objective, counts)
    expected, expected_means = reference(drafter, plan, hidden, states, objective)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert means == pytest.approx(expected_means, rel=1e-4)

    weights_of = list(drafter.parameters())
    for one, two in zip(
        torch.autograd.grad(got, weights_of, retain_graph=True),
        torch.autograd.grad(expected, weights_of),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=2e-3, atol=1e-5)


def test_counts_of_several_batches_give_the_mean_over_all(
    batch: Batch, states: tuple[Tensor, Tensor]
) -> None:
    drafter, table = tiny_drafter(tiny_config()), nn.Embedding(VOCAB, WIDTH)
    teacher, _ = make_teacher(batch, states)
    plan = plan_chain(batch, 1)
    counts = count_columns(plan, teacher.draftable)
    hidden = list(unroll(drafter, table, batch, torch.randn(24, 3 * WIDTH), plan))
    whole, _ = chain_loss(drafter, plan, hidden, teacher, Objective(), counts)
    half, _ = chain_loss(drafter, plan, hidden, teacher, Objective(), 2 * counts)
    assert float(half.detach()) == pytest.approx(float(whole.detach()) / 2)


def test_positions_outside_the_mask_change_nothing(
    batch: Batch, states: tuple[Tensor, Tensor]
) -> None:
    drafter = tiny_drafter(tiny_config())
    teacher, _ = make_teacher(batch, states)
    plan = plan_chain(batch, 1)
    hidden = torch.randn(24, WIDTH)
    changed = hidden.clone()
    changed[~plan[0].live] += 100
    counts = count_columns(plan, teacher.draftable)
    first, _ = chain_loss(drafter, plan, [hidden], teacher, Objective(), counts)
    second, _ = chain_loss(drafter, plan, [changed], teacher, Objective(), counts)
    assert torch.equal(first, second)


def test_a_batch_without_a_lesson_has_no_gradient() -> None:
    drafter = tiny_drafter(tiny_config())
    batch = pack([Document([1] * 4, [False] * 3 + [True])])
    final, head = torch.randn(4, WIDTH), torch.randn(VOCAB, WIDTH)
    verdicts = judge(final, head, batch.answer, totals=False)
    teacher = teach(final, head[DRAFT_IDS], VOCABULARY, verdicts)
    plan = plan_chain(batch, 2)
    features, table = torch.randn(4, 3 * WIDTH), nn.Embedding(VOCAB, WIDTH)
    hidden = unroll(drafter, table, batch, features, plan)
    counts = count_columns(plan, teacher.draftable)
    total, means = chain_loss(drafter, plan, hidden, teacher, Objective(), counts)
    assert not total.requires_grad
    assert all(map(math.isnan, means))
