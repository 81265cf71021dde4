"""Matrix products with constant weights, as fast as the device allows in eager mode."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from speckernels import PackedWeight
from speckernels.packed_linear import PackedLinear, packable

#: ``[..., in]`` to ``[..., out]``.
Linear = Callable[[Tensor], Tensor]


def pack_linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """A product with ``weight`` ``[out, in]``, which the caller may drop afterwards."""
    if packable(weight):
        return PackedLinear(weight, bias).forward
    return lambda rows: functional.linear(rows, weight, bias)


def product_of(linear: Linear) -> PackedWeight | None:
    """A product's weights as our own kernels read them; None where it is not run by them."""
    packed = getattr(linear, "__self__", None)
    return packed.product if isinstance(packed, PackedLinear) else None
