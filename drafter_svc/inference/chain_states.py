"""The states that chains start from, one row of a tensor for each sequence."""

from collections.abc import Mapping

import torch
from torch import Tensor

from speckernels import to_device_async


class ChainStates:
    """What left the last layer for the last real entry of each sequence, by its slot's number.

    ``rows`` is ``[capacity, H]``, and grows with the numbers; a row that was never kept is zeros.
    """

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rows = torch.zeros(64, width, dtype=dtype, device=device)

    def keep(self, hidden: Tensor, sources: Mapping[int, int]) -> None:
        """Keep rows of ``hidden`` ``[n, H]``: ``sources`` has the row for each number."""
        most = max(sources)
        if most >= len(self.rows):
            missing = self.rows.new_zeros(max(most + 1, 2 * len(self.rows)), self.rows.shape[1])
            missing[: len(self.rows)] = self.rows
            self.rows = missing
        numbers, at = to_device_async([list(sources), list(sources.values())], self.rows.device)
        self.rows.index_copy_(0, numbers, hidden.index_select(0, at))
