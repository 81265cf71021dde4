"""FLOPs are those of the products, counted once for each kind of work."""

import pytest
import torch
from torch.nn import functional

from drafter_svc.train.run.throughput import Meter, Throughput, matrix_rate


def product(tokens: int) -> None:
    """An update of a weight [5, 3]: one product forward, two backward."""
    weight = torch.ones(5, 3, requires_grad=True)
    rows = torch.ones(tokens, 3, requires_grad=True)
    torch.autograd.backward((rows @ weight.T).sum())


def test_products_are_counted_forward_and_backward() -> None:
    meter = Meter()
    with meter.work("update", 7):
        product(7)
    assert meter.flops == 3 * 2 * 7 * 3 * 5


@pytest.mark.parametrize("causal", [False, True])
def test_fused_attention_is_counted(causal: bool) -> None:
    def attention(tokens: int) -> None:
        q, k, v = (torch.ones(1, 2, tokens, 16, requires_grad=True) for _ in range(3))
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        torch.autograd.backward(out.sum())

    meter = Meter()
    with meter.work("attention", 8):
        attention(8)
    # Two products forward, and five backward, where the scores are computed again.
    assert meter.flops == (2 + 5) * 2 * (2 * 8 * 8 * 16) * (0.5 if causal else 1)


def test_later_work_of_a_kind_is_taken_to_cost_the_same_per_token() -> None:
    meter = Meter()
    for tokens in (4, 6):
        with meter.work("update", tokens):
            product(4 if tokens == 4 else 100)
    with meter.work("other", 2), torch.no_grad():
        _ = torch.ones(2, 3) @ torch.ones(3, 4)
    assert meter.flops == 10 * 3 * 2 * 3 * 5 + 2 * 2 * 3 * 4


def test_the_share_is_of_what_products_reach() -> None:
    assert Throughput(500.0, 2e8).describe(4e11) == (
        "500 tokens/s of 0.20 GFLOP: 0.100 TFLOP/s, 25% of the 0.400 that matrix products reach "
        "here"
    )


def test_the_matrix_rate_is_that_of_the_best_shape() -> None:
    shapes = [(1, 1, 1), (64, 64, 64)]
    assert matrix_rate(shapes, torch.device("cpu"), seconds=0.02) > 1e6
