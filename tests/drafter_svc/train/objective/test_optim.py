"""Master weights, the learning rate and the chain schedule."""

import copy

import pytest
import torch
from torch import nn

from drafter_svc.train.objective.optim import MasterOptimizer, chain_steps, learning_rate
from tests.support.tiny_drafter import tiny_config, tiny_drafter


def filled(module: nn.Module, value: float) -> None:
    generator = torch.Generator().manual_seed(int(value * 1000))
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.grad = (noise * value).to(parameter.dtype)


def test_updates_below_bf16_resolution_add_up() -> None:
    drafter = tiny_drafter(tiny_config())
    nn.init.ones_(drafter.norm.weight)
    optimizer = MasterOptimizer(drafter, clip=1e9)
    after = []
    for _ in range(40):
        for parameter in drafter.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.gather()
        optimizer.step(2e-4)  # a twentieth of bf16's spacing at 1
        after.append(drafter.norm.weight[0].item())
    assert after[0] == 1.0
    assert after[-1] == pytest.approx(1 - 40 * 2e-4, abs=4e-3)


def test_the_module_computes_in_bf16_and_gradients_are_cleared() -> None:
    drafter = tiny_drafter(tiny_config())
    optimizer = MasterOptimizer(drafter, clip=1.0)
    filled(drafter, 1.0)
    optimizer.gather()
    norm = optimizer.step(1e-3)
    assert norm > 1.0
    assert all(p.dtype == torch.bfloat16 and p.grad is None for p in drafter.parameters())


def test_a_restored_optimizer_takes_the_same_steps() -> None:
    first, second = (tiny_drafter(tiny_config(), seed) for seed in (0, 1))
    one, two = MasterOptimizer(first, clip=1.0), MasterOptimizer(second, clip=1.0)
    for value in (1.0, 2.0):
        filled(first, value)
        one.gather()
        one.step(1e-2)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for module, optimizer in ((first, one), (second, two)):
        filled(module, 3.0)
        optimizer.gather()
        optimizer.step(1e-2)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_gradient_that_is_not_finite_stops_the_run() -> None:
    drafter = tiny_drafter(tiny_config())
    optimizer = MasterOptimizer(drafter, clip=1.0)
    filled(drafter, 1.0)
    assert drafter.fc.weight.grad is not None
    drafter.fc.weight.grad[0, 0] = torch.nan
    before = {name: tensor.clone() for name, tensor in drafter.state_dict().items()}
    optimizer.gather()
    with pytest.raises(FloatingPointError, match="not finite"):
        optimizer.step(1e-3)
    for name, tensor in drafter.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_gradients_of_several_batches_add_up_in_fp32() -> None:
    drafter = tiny_drafter(tiny_config())
    optimizer = MasterOptimizer(drafter, clip=1.0)
    for value in (1.0, 2**-12):  # their sum does not exist in bf16
        for parameter in drafter.parameters():
            parameter.grad = torch.full_like(parameter, value)
        optimizer.gather()
    assert all(bool((gradient == 1 + 2**-12).all()) for gradient in optimizer.gradients)


def test_adamw_alone_moves_the_matrices_otherwise() -> None:
    moved = []
    for muon in (True, False):
        drafter = tiny_drafter(tiny_config())
        optimizer = MasterOptimizer(drafter, clip=1.0, muon=muon)
        filled(drafter, 1.0)
        optimizer.gather()
        optimizer.step(1e-2)
        moved.append(drafter)
    assert torch.equal(moved[0].lm_head.weight, moved[1].lm_head.weight)
    assert not torch.equal(moved[0].fc.weight, moved[1].fc.weight)


@pytest.mark.parametrize("muon", [True, False])
def test_a_frozen_parameter_stays_as_it_is(muon: bool) -> None:
    drafter = tiny_drafter(tiny_config(own_embeddings=True))
    drafter.embed_tokens.requires_grad_(False)
    before = drafter.embed_tokens.weight.bfloat16()
    optimizer = MasterOptimizer(drafter, clip=1.0, muon=muon)
    assert len(optimizer.gradients) == len(list(drafter.parameters())) - 1
    for _ in range(3):
        filled(drafter, 1.0)
        optimizer.gather()
        optimizer.step(1e-1)
    assert torch.equal(drafter.embed_tokens.weight, before)


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    rates = [learning_rate(2.0, step / 100, warm_up=0.1) for step in range(101)]
    assert rates[0] == 0.0
    assert rates[5] == pytest.approx(1.0)
    assert rates[10] == max(rates) == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.0)
    assert learning_rate(2.0, 1.2, warm_up=0.1) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("stages", "expected"),
    [([1], [1] * 6), ([1, 2], [1] * 3 + [2] * 3), ([1, 2, 4], [1, 1, 2, 2, 4, 4])],
)
def test_chains_grow_in_equal_shares(stages: list[int], expected: list[int]) -> None:
    assert [chain_steps(stages, step / 6 + 0.01) for step in range(6)] == expected
    assert chain_steps(stages, 1.5) == stages[-1]
