"""The processes that run one target together: rank 0 leads, the others repeat what it orders."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from speckernels.device import device_name
from specserve.settings import StartError
from verifier_svc.kv.kv_cache import FeatureSlots, KVCache
from verifier_svc.parallel.commands import Clear, Copy, Order, Reserve, Run, Stop

# Ranks load at different speeds.
_LOADING = timedelta(minutes=30)
# Within a step all ranks are at the same layer, but for what one of them compiles longer.
STEP_TIMEOUT = timedelta(minutes=2)
# Without requests nothing is ordered, and nobody but rank 0 knows when the next one comes.
_IDLE = timedelta(days=3650)


class RanksLostError(RuntimeError):
    """Another rank has ended, or does not answer: nothing can be run any more."""


class RankGroup:
    """This process among its ranks. `layers` is the group in which layers sum their parts.

    Orders travel on the CPU beside it, so that they wait for nothing that a GPU has queued. Once
    `lost`, the ranks may be at different steps, and what they would sum is wrong.
    """

    def __init__(self, device: torch.device) -> None:
        """The default process group must be there."""
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()
        self.device = device
        self.lost = False
        self._caches = 0
        patience = STEP_TIMEOUT if self.leads else _IDLE
        self._orders = dist.new_group(backend="gloo", timeout=patience)
        self.layers = dist.new_group(timeout=STEP_TIMEOUT)
        assert self.layers is not None
        names: list[Any] = [None] * self.world
        dist.all_gather_object(names, device_name(device), group=self._orders)
        #: Names of the devices of all ranks.
        self.devices = frozenset[str](names)

    @classmethod
    def join(cls, device: torch.device) -> RankGroup | None:
        """Meet the other ranks; None where torchrun's variables name no others.

        Args:
            device: what the settings ask for; each rank takes its own of that kind.

        Raises:
            StartError: the ranks cannot meet, or there is no device for this one.
        """
        if int(os.environ.get("WORLD_SIZE") or 1) == 1:
            return None
        device = _own_device(device, int(os.environ.get("LOCAL_RANK") or 0))
        try:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_LOADING)
            return cls(device)
        except (RuntimeError, ValueError) as error:
            raise StartError(f"The ranks cannot meet: {_first_line(error)}") from None

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def agree(self, facts: Mapping[str, str]) -> None:
        """Compare what must be the same on all ranks; all of them call this.

        Raises:
            StartError: on every rank, where one of them differs from rank 0 or has ended.
        """
        every: list[Any] = [None] * self.world
        try:
            dist.all_gather_object(every, dict(facts))
        except RuntimeError as error:
            raise StartError(f"Another rank has ended: {_first_line(error)}") from None
        for rank, other in enumerate(every):
            different = [name for name in facts if other.get(name) != every[0].get(name)]
            if different:
                raise StartError(
                    f"Rank {rank} differs from rank 0 in its {' and '.join(different)}; "
                    "all ranks must load the same target."
                )

    def order(self, order: Order) -> None:
        """Tell the other ranks what to do next, from rank 0.

        Raises:
            RanksLostError: one of them has ended.
        """
        if self.lost:
            raise RanksLostError("Another rank has ended.")
        try:
            dist.broadcast_object_list([order], src=0, group=self._orders)
        except RuntimeError as error:
            self.lost = True
            raise RanksLostError(f"Another rank has ended: {_first_line(error)}") from error

    def reserve(self, blocks: int) -> int:
        """Order a cache of so many blocks; returns its number."""
        self.order(Reserve(blocks))
        self._caches += 1
        return self._caches - 1

    def next_order(self) -> Order:
        """Wait for the next order, on the other ranks.

        Raises:
            RanksLostError: rank 0 has ended without one.
        """
        orders: list[Any] = [None]
        try:
            dist.broadcast_object_list(orders, src=0, group=self._orders)
        except RuntimeError as error:
            self.lost = True
            raise RanksLostError(f"Rank 0 has ended: {_first_line(error)}") from error
        order: Order = orders[0]
        return order

    @contextlib.contextmanager
    def together(self, order: Order) -> Iterator[None]:
        """Do on rank 0 what the others were ordered to do at the same time.

        Whatever fails on the way loses the ranks: they may have come to different layers.
        """
        self.order(order)
        try:
            yield
        except BaseException:
            self.lost = True
            raise

    def leave(self) -> None:
        """End the other ranks, from rank 0, and take leave of them."""
        if self.leads:
            with contextlib.suppress(RanksLostError):
                self.order(Stop())
        if not self.lost:
            dist.destroy_process_group()


class ReplicatedKVCache(KVCache):
    """Rank 0's share of a cache: what changes in it changes on every rank."""

    def __init__(self, ranks: RankGroup, **shape: Any) -> None:
        """`shape` is what `KVCache` takes."""
        super().__init__(**shape)
        self._ranks = ranks
        self._number = ranks.reserve(shape["blocks"])

    @property
    def lost(self) -> bool:
        return self._ranks.lost

    def writing(self, rows: Iterable[FeatureSlots]) -> contextlib.AbstractContextManager[None]:
        parts = tuple((part.slot, part.position, tuple(part.tokens), part.prompt) for part in rows)
        return self._ranks.together(Run(self._number, parts))

    def copy(self, source: int, slot: int, count: int) -> None:
        with self._ranks.together(Copy(self._number, source, slot, count)):
            super().copy(source, slot, count)

    def clear(self, slot: int, count: int) -> None:
        if self.lost:  # nothing will be read any more
            return
        with self._ranks.together(Clear(self._number, slot, count)):
            super().clear(slot, count)


def _own_device(device: torch.device, local_rank: int) -> torch.device:
    if device.index is not None or (device.type == "cpu" and torch.cuda.is_available()):
        raise StartError(f"--device: each rank takes a GPU of its own, {str(device)!r} was given.")
    if device.type != "cuda":
        return device
    if local_rank >= torch.cuda.device_count():
        raise StartError(
            f"Rank {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}."
        )
    own = torch.device("cuda", local_rank)
    torch.cuda.set_device(own)
    return own


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0]
