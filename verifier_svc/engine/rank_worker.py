"""The ranks beside rank 0: no service, only the same forwards on their share of the target."""

from __future__ import annotations

import signal
from typing import NamedTuple

import torch

from specserve import logs
from verifier_svc.kv.kv_cache import KVCache
from verifier_svc.model.target import Target
from verifier_svc.parallel.commands import Clear, Copy, Reserve, Run, Stop
from verifier_svc.parallel.rank_group import RankGroup, RanksLostError

_log = logs.get(__name__)


class _Rows(NamedTuple):
    slot: int
    position: int
    tokens: tuple[int, ...]
    prompt: bool


@torch.inference_mode()
def run_rank_worker(target: Target, ranks: RankGroup) -> None:
    """Do what rank 0 orders until it ends.

    Signals are left to rank 0, which needs the others until its last generation has ended.

    Raises:
        SystemExit: with status 1, where rank 0 ends without saying so.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    _log.info("following", rank=ranks.rank, ranks=ranks.world)
    caches: list[KVCache] = []
    try:
        while not isinstance(order := ranks.next_order(), Stop):
            match order:
                case Reserve(blocks):
                    # Features are the same on all ranks: rank 0 keeps them.
                    caches.append(target.reserve(blocks, feature_width=0))
                case Run(cache, rows):
                    target.states([_Rows(*row) for row in rows], caches[cache], ())
                case Copy(cache, source, slot, count):
                    caches[cache].copy(source, slot, count)
                case Clear(cache, slot, count):
                    caches[cache].clear(slot, count)
    except RanksLostError as error:
        _log.error("stopped", rank=ranks.rank, reason=str(error))
        raise SystemExit(1) from None
    ranks.leave()
    _log.info("stopped", rank=ranks.rank)
