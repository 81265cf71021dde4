"""What cannot be recorded is found before a capture is begun, which would be left broken."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Operators whose result, or its size, the host has to know.
_KNOWN = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
# Those that do so where they are given a mask.
_MASKED = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
}
# Those that do so between the host's memory and its own, unless they are told not to.
_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class NoWaits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Around work of this thread that must not wait for its device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator.

        Raises:
            RuntimeError: it waits for the device.
        """
        kwargs = kwargs or {}
        if func in _COPIES:
            waits = _copy_waits(*args, **kwargs)
        elif func in _MASKED:
            places = [place for place in args[1] if place is not None]
            waits = any(place.dtype in (torch.bool, torch.uint8) for place in places)
        else:
            waits = not _KNOWN.isdisjoint(func.tags)
        if waits:
            raise RuntimeError(f"{func} waits for the device, and cannot be recorded")
        # In inference mode, operators that are made of others come whole.
        with self:
            made = func.decompose(*args, **kwargs)
        return func(*args, **kwargs) if made is NotImplemented else made


def _copy_waits(
    tensor: torch.Tensor,
    source: torch.Tensor | None = None,
    non_blocking: bool = False,
    *,
    device: torch.device | None = None,
    **_: Any,
) -> bool:
    """Whether a copy of `source` into `tensor`, or of `tensor` to `device`, stops the host."""
    other = source.device if source is not None else device or tensor.device
    if (tensor.device.type == "cpu") == (other.type == "cpu"):
        return False
    sides = [side for side in (tensor, source) if side is not None and side.device.type == "cpu"]
    # A new tensor on the CPU is pinned where nothing is to wait for it.
    return not (non_blocking and all(side.is_pinned() for side in sides))
