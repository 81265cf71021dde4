"""The processes that train together, as torchrun starts them; alone without it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """This process's ``rank`` among ``size``. Collectives must be called by all, in one order."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: str) -> "ProcessGroup":
        """Meet the others over NCCL on CUDA and gloo elsewhere, if torchrun started this process.

        Each process of a machine takes the CUDA device of its local rank.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        cuda = device.startswith("cuda")
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if cuda else "gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    def leave(self) -> None:
        if self.size > 1:
            dist.destroy_process_group()

    @property
    def leads(self) -> bool:
        """Whether this process measures and writes."""
        return self.rank == 0

    def total(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.size > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            dist.all_reduce(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def largest(self, values: Sequence[float], device: torch.device) -> list[float]:
        """The largest of each value over all processes."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        largest: list[float] = tensor.tolist()
        return largest
