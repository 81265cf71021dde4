"""Packed chain attention against a dense softmax over everything a column may see."""

import pytest
import torch
from torch import Tensor

from drafter_svc.train.objective import sdpa_with_lse as kernel_module
from drafter_svc.train.objective import ttt_attention
from drafter_svc.train.objective.ttt_attention import ChainAttention

LENGTHS, HEADS, KV_HEADS, WIDTH, STEPS = (9, 1, 14), 4, 2, 8, 3


def dense(
    columns: Tensor, step: int, calls: list[tuple[Tensor, Tensor, Tensor]], window: int | None
) -> Tensor:
    """The last call's result with a mask of all its rows times all keys handed over so far."""
    start = torch.tensor([0, *LENGTHS]).cumsum(0)
    document = torch.bucketize(torch.arange(sum(LENGTHS)), start[1:], right=True)
    keys, positions, owners = [calls[0][1]], [torch.arange(sum(LENGTHS))], [None]
    for k, (_, own, _) in enumerate(calls[1:], start=1):
        keys.append(own)
        positions.append(columns + k)
    rows = columns if step else torch.arange(sum(LENGTHS))
    first = (document[rows][:, None] == document[None]) & (rows[:, None] >= positions[0])
    masks = [first, *(torch.eye(len(rows), dtype=torch.bool) for _ in owners * step)]
    mask, where = torch.cat(masks, 1), torch.cat(positions)
    if window is not None:
        mask = mask & (where > (rows + step)[:, None] - window)
    group = HEADS // KV_HEADS
    every_key = torch.cat(keys).repeat_interleave(group, 1)
    every_value = torch.cat([v for _, _, v in calls]).repeat_interleave(group, 1)
    scores = torch.einsum("rhd,khd->hrk", calls[-1][0], every_key) * WIDTH**-0.5
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return torch.einsum("hrk,khd->rhd", weights, every_value).flatten(1)


def random_calls(columns: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    torch.manual_seed(0)
    counts = [sum(LENGTHS), *[len(columns)] * STEPS]
    return [
        tuple(torch.randn(n, h, WIDTH, requires_grad=True) for h in (HEADS, KV_HEADS, KV_HEADS))  # type: ignore[misc]
        for n in counts
    ]


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("kernel", ["fused", "plain"])
@pytest.mark.parametrize("columns", [[0, 1, 2, 8, 9, 10, 23], [3, 12, 15, 18], [11]])
def test_results_and_gradients_are_those_of_a_dense_mask(
    monkeypatch: pytest.MonkeyPatch, columns: list[int], kernel: str, window: int | None
) -> None:
    monkeypatch.setattr(ttt_attention, "_BLOCK", 4)
    if kernel == "plain":
        monkeypatch.setattr(kernel_module, "_FUSED", frozenset())
    at = torch.tensor(columns)[torch.tensor(columns) < sum(LENGTHS)]
    calls = random_calls(at)
    attend = ChainAttention(LENGTHS, at, window)
    weights = [torch.randn(len(q), HEADS * WIDTH) for q, _, _ in calls]
    outs = [attend(*call) for call in calls]
    expected = [dense(at, k, calls[: k + 1], window) for k in range(len(calls))]
    leaves = [tensor for call in calls for tensor in call]
    got, wanted = (
        torch.autograd.grad(torch.stack([(o * w).sum() for o, w in pairs]).sum(), leaves)
        for pairs in (zip(outs, weights, strict=True), zip(expected, weights, strict=True))
    )
    for a, b in zip([*outs, *got], [*expected, *wanted], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [None, 5])
def test_each_layer_keeps_its_own_keys(window: int | None) -> None:
    columns = torch.tensor([3, 12, 15, 18])
    calls = random_calls(columns)
    layers = [calls, [(q + 1, k * 2, v - 1) for q, k, v in calls]]
    alone = [ChainAttention(LENGTHS, columns, window) for _ in layers]
    together = ChainAttention(LENGTHS, columns, window, layers=2)
    for step in range(STEPS + 1):
        for layer, attend in zip(layers, alone, strict=True):
            assert torch.equal(together(*layer[step]), attend(*layer[step]))


def test_a_window_that_hides_the_whole_text_is_refused() -> None:
    columns = torch.tensor([3])
    attend = ChainAttention(LENGTHS, columns, 2)
    calls = random_calls(columns)
    attend(*calls[0])
    attend(*calls[1])
    with pytest.raises(ValueError, match="window of 2"):
        attend(*calls[2])


def test_nothing_of_size_t_times_t_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes saved for backward and for masks per row do not grow with the rows."""

    def saved(length: int) -> int:
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        torch.manual_seed(0)
        tensors = [torch.randn(length, h, WIDTH, requires_grad=True) for h in (4, 2, 2)]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            ChainAttention([length], torch.arange(length))(*tensors)
        return total

    assert saved(2048) == 4 * saved(512)
