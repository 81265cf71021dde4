"""Matrix products with constant weights, as fast as the device allows in eager mode."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

#: ``[..., in]`` to ``[..., out]``.
Linear = Callable[[Tensor], Tensor]

# oneDNN lays weights out for a number of rows; any number runs, small ones run best.
_PACKED_ROWS = 8


def pack_linear(weight: Tensor) -> Linear:
    """A product with ``weight`` ``[out, in]``, which the caller may drop afterwards.

    On CPUs with bf16 instructions oneDNN otherwise reorders the weight in every call, which
    takes about as long as the product itself for the few rows of a chain step.
    """
    packable = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
    if packable and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACKED_ROWS)
        product = torch.ops.mkldnn._linear_pointwise.default

        def packed_linear(rows: Tensor) -> Tensor:
            return product(rows, packed, None, "none", [], "")  # type: ignore[no-any-return]

        return packed_linear
    return lambda rows: functional.linear(rows, weight)
