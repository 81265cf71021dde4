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


class NoWaits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Around work of this thread that must not wait for its device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator.

        Raises:
            RuntimeError: it waits for the device.
        """
        if func in _MASKED:
            places = [place for place in args[1] if place is not None]
            waits = any(place.dtype in (torch.bool, torch.uint8) for place in places)
        else:
            waits = not _KNOWN.isdisjoint(func.tags)
        if waits:
            raise RuntimeError(f"{func} waits for the device, and cannot be recorded")
        kwargs = kwargs or {}
        # In inference mode, operators that are made of others come whole.
        with self:
            made = func.decompose(*args, **kwargs)
        return func(*args, **kwargs) if made is NotImplemented else made
