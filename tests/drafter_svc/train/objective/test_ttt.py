"""The unrolled chain against a chain that is run one column and one step at a time."""

import pytest
import torch
from torch import Tensor, nn

from drafter_svc.model.eagle import EagleDrafter
from drafter_svc.train.data.documents import Batch, Document, pack
from drafter_svc.train.objective.ttt import plan_chain, unroll
from tests.support.tiny_drafter import tiny_config, tiny_drafter

WIDTH, LENGTH, STEPS = 16, 11, 4


class OneChain:
    """Attention by definition: all keys handed over so far, one query, a softmax per head."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        self.keys += list(keys)
        self.values += list(values)
        group = queries.shape[1] // keys.shape[1]
        rows = []
        for row in range(len(queries)):
            visible = len(self.keys) - len(queries) + row + 1
            heads = []
            for head in range(queries.shape[1]):
                past = torch.stack([key[head // group] for key in self.keys[:visible]])
                scores = past @ queries[row, head] / queries.shape[-1] ** 0.5
                seen = torch.stack([value[head // group] for value in self.values[:visible]])
                heads.append(scores.softmax(0) @ seen)
            rows.append(torch.cat(heads))
        return torch.stack(rows)


def reference(
    drafter: EagleDrafter, table: nn.Embedding, ids: Tensor, features: Tensor, column: int
) -> list[Tensor]:
    """Hidden states of the chain that starts at ``column``, as serving computes them."""
    attend = OneChain()
    real = torch.arange(column + 1)
    state = drafter.fuse(features[real])
    hidden = drafter.layer(table(ids[real + 1]), state, real, attend)[-1:]
    chain = [hidden[0]]
    for step in range(1, STEPS):
        if column + 1 + step >= len(ids):
            break
        token, position = ids[column + 1 + step][None], torch.tensor([column + step])
        hidden = drafter.layer(table(token), drafter.recycle(hidden), position, attend)
        chain.append(hidden[0])
    return chain


LENGTHS = (LENGTH, 2, 7)


def random_batch(answer: list[bool] | None = None) -> tuple[Batch, Tensor]:
    """Three packed documents; ``answer`` is that of the first."""
    generator = torch.Generator().manual_seed(5)
    masks = [answer or [False] * 3 + [True] * (LENGTH - 3), [False, True], [False] + [True] * 6]
    documents = [
        Document(torch.randint(0, 64, (length,), generator=generator).tolist(), mask)
        for length, mask in zip(LENGTHS, masks, strict=True)
    ]
    return pack(documents), torch.randn(sum(LENGTHS), 3 * WIDTH, generator=generator)


@pytest.mark.parametrize("norm_output", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_unrolled_chain_is_the_chain_of_each_column(norm_output: bool, stride: int) -> None:
    drafter = tiny_drafter(tiny_config(norm_output=norm_output))
    table = nn.Embedding(64, WIDTH)
    batch, features = random_batch()
    plan = plan_chain(batch, STEPS, stride=stride, phase=1)
    compared = 0
    with torch.no_grad():
        steps = list(unroll(drafter, table, batch, features, plan))
        start = 0
        for length in LENGTHS:
            document = slice(start, start + length)
            for column in range(length - 1):
                chain = reference(drafter, table, batch.ids[document], features[document], column)
                for k, expected in enumerate(chain):
                    at = (plan[k].columns == start + column).nonzero().flatten().tolist()
                    for row in at:
                        torch.testing.assert_close(steps[k][row], expected, rtol=1e-4, atol=1e-5)
                        compared += 1
            start += length
    assert compared > sum(int(step.live.sum()) for step in plan) > 20


@pytest.mark.parametrize("prompts", [True, False])
@pytest.mark.parametrize("stride", [1, 3])
def test_the_plan_follows_the_index_table(stride: int, prompts: bool) -> None:
    answer = [False, False, False, True, True, True, False, False, True, True, True]
    batch, _ = random_batch(answer)
    plan = plan_chain(batch, STEPS, stride=stride, phase=0, prompts=prompts)
    start = 0
    for length in LENGTHS:
        for k, step in enumerate(plan):
            for i in range(length):
                # x_{i+1} .. x_{i+2+k} must all be tokens that the target wrote, in one answer.
                needed = range(i + 1, i + 3 + k)
                live = all(j < length and bool(batch.answer[start + j]) for j in needed)
                if k == 0:
                    live |= prompts and i + 2 < length
                else:
                    live &= i % stride == 0
                at = (step.columns == start + i).nonzero().flatten()
                assert bool(step.live[at].any()) == live
                if live:
                    assert step.teacher[at].tolist() == [start + i + 1 + k]
        start += length


def test_the_recycled_state_carries_gradient_to_the_features() -> None:
    drafter, table = tiny_drafter(tiny_config()), nn.Embedding(64, WIDTH)
    batch, features = random_batch()
    features.requires_grad_()
    plan = plan_chain(batch, 3, stride=LENGTH, phase=LENGTH - 5)
    assert plan[1].columns.tolist() == [5, LENGTHS[0] + LENGTHS[1] + 5][:1]
    last = list(unroll(drafter, table, batch, features, plan))[-1]
    torch.autograd.backward(last.sum())
    assert features.grad is not None
    reached = features.grad.abs().sum(-1) > 0
    assert reached.tolist() == [True] * 6 + [False] * (sum(LENGTHS) - 6)
