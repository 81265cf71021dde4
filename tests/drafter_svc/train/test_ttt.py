"""The unrolled chain against a chain that is run one column and one step at a time."""

import pytest
import torch
from torch import Tensor, nn

from drafter_svc.eagle import EagleDrafter
from drafter_svc.train.attention import ChainAttention
from drafter_svc.train.data import Batch
from drafter_svc.train.ttt import chain_columns, unroll
from tests.drafter_svc.tiny import tiny_config, tiny_drafter

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


def random_batch(answer: list[bool] | None = None) -> tuple[Batch, Tensor]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 64, (2, LENGTH), generator=generator)
    mask = torch.tensor([answer or [False] * 3 + [True] * (LENGTH - 3)] * 2)
    return Batch(ids, mask), torch.randn(2, LENGTH, 3 * WIDTH, generator=generator)


@pytest.mark.parametrize("norm_output", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_unrolled_chain_is_the_chain_of_each_column(norm_output: bool, stride: int) -> None:
    drafter = tiny_drafter(tiny_config(norm_output=norm_output))
    table = nn.Embedding(64, WIDTH)
    batch, features = random_batch()
    columns = chain_columns(batch, stride, phase=1)
    with torch.no_grad():
        steps = list(unroll(drafter, table, batch, features, steps=STEPS, columns=columns))
        for row in range(2):
            for column in columns.tolist():
                chain = reference(drafter, table, batch.ids[row], features[row], column)
                for step, expected in enumerate(chain):
                    at = steps[step].columns.tolist().index(column)
                    torch.testing.assert_close(
                        steps[step].hidden[row, at], expected, rtol=1e-4, atol=1e-5
                    )


def test_live_columns_and_teacher_positions_follow_the_index_table() -> None:
    answer = [False, False, False, True, True, True, False, False, True, True, True]
    batch, features = random_batch(answer)
    drafter, table = tiny_drafter(tiny_config()), nn.Embedding(64, WIDTH)
    columns = torch.arange(LENGTH - 1)
    chain = unroll(drafter, table, batch, features, steps=STEPS, columns=columns)
    for k, step in enumerate(chain):
        for i in columns.tolist():
            # x_{i+1} .. x_{i+2+k} must all be tokens that the target wrote, in one answer.
            needed = range(i + 1, i + 3 + k)
            live = all(j < LENGTH and answer[j] for j in needed)
            assert step.live[:, i].tolist() == [live, live]
            if live:
                assert step.teacher[:, i].tolist() == [i + 1 + k] * 2


def test_chains_start_at_the_last_prompt_token() -> None:
    batch, features = random_batch([False] * 4 + [True] * 7)
    assert chain_columns(batch, 1, 0).tolist() == list(range(3, LENGTH - 1))
    chain = unroll(
        tiny_drafter(tiny_config()),
        nn.Embedding(64, WIDTH),
        batch,
        features,
        steps=1,
        columns=chain_columns(batch, 1, 0),
    )
    assert next(chain).live[0].nonzero().flatten().tolist() == list(range(3, LENGTH - 2))


def test_a_chain_does_not_see_another_chain() -> None:
    columns = torch.arange(5)
    torch.manual_seed(0)
    first = [torch.randn(1, 5, heads, 8) for heads in (4, 2, 2)]
    later = [torch.randn(1, 5, heads, 8) for heads in (4, 2, 2)]
    changed = [tensor.clone() for tensor in later]
    for tensor in changed:
        tensor[:, 2] += 1
    outputs = []
    for step in (later, changed):
        attend = ChainAttention(columns)
        attend(*first)
        outputs.append(attend(*step))
    same = (outputs[0] == outputs[1]).flatten(2).all(-1)[0]
    assert same.tolist() == [True, True, False, True, True]


def test_the_recycled_state_carries_gradient_to_the_features() -> None:
    drafter, table = tiny_drafter(tiny_config()), nn.Embedding(64, WIDTH)
    batch, features = random_batch()
    features.requires_grad_()
    columns = torch.tensor([5])
    last = list(unroll(drafter, table, batch, features, steps=3, columns=columns))[-1]
    torch.autograd.backward(last.hidden.sum())
    assert features.grad is not None
    reached = features.grad.abs().sum((0, 2)) > 0
    assert reached.tolist() == [True] * 6 + [False] * (LENGTH - 6)
