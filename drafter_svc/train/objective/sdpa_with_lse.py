"""Attention of a block of rows with an additive mask, forward and backward."""

import torch
from torch import Tensor

# Devices with a fused kernel that takes the result of a larger softmax in its backward.
_FUSED = frozenset({"cpu"})
_ops = torch.ops.aten


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``[kv_heads, R, d]`` to outputs alike and fp32 log-sum-exps ``[kv_heads, R]``."""
    if queries.device.type in _FUSED:
        out, sums = _ops._scaled_dot_product_flash_attention_for_cpu(
            queries[None], keys[None], values[None], 0.0, False, attn_mask=mask
        )
        return out[0], sums[0]
    scores = _scores(queries, keys, mask)
    sums = scores.logsumexp(-1)
    return (scores - sums[..., None]).exp().to(values.dtype) @ values, sums


def attend_backward(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    out: Tensor,
    sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values for a softmax with the given result.

    ``out`` and ``sums`` may be of a softmax over more keys than these: the weights that these
    keys have in it follow from ``sums``, and their gradients from ``out``.
    """
    if queries.device.type in _FUSED:
        grads = _ops._scaled_dot_product_flash_attention_for_cpu_backward(
            *(t[None] for t in (grad, queries, keys, values, out, sums)), 0.0, False, attn_mask=mask
        )
        d_queries, d_keys, d_values = (gradient[0] for gradient in grads)
        return d_queries, d_keys, d_values
    weights = (_scores(queries, keys, mask) - sums[..., None]).exp()
    inner = (grad.float() * out.float()).sum(-1, keepdim=True)
    slopes = weights * ((grad @ values.transpose(1, 2)).float() - inner)
    slopes = (slopes * queries.shape[-1] ** -0.5).to(queries.dtype)
    d_values = weights.to(grad.dtype).transpose(1, 2) @ grad
    return slopes @ keys, slopes.transpose(1, 2) @ queries, d_values


def _scores(queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    scores: Tensor = (queries @ keys.transpose(1, 2)).float()
    return scores.mul_(queries.shape[-1] ** -0.5).add_(mask)
