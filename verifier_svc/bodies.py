"""Which form of a decoder runs: as one kernel, as recorded graphs, or layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from specwire import logs
from specwire.kernels import Reach, Segment
from verifier_svc.blocks import BLOCK_SIZE
from verifier_svc.body import Body, Kept, KernelBody, ModuleBody
from verifier_svc.cache import KVCache
from verifier_svc.fuse import near
from verifier_svc.graph import GraphBody

_Result = TypeVar("_Result")

_log = logs.get(__name__)


@torch.inference_mode()
def body_of(
    module: Any,
    num_layers: int,
    kv_heads: int,
    head_dim: int,
    *,
    positions: int | None = None,
    record: bool = True,
) -> Body:
    """A decoder whose parts have been fused, in a faster form if that gives the same.

    `positions` are as many as sequences may have, by default the model's own limit. Without
    `record` its graph is not recorded: one of several ranks cannot be, nor can attention that
    FlashAttention leaves to others.
    """
    config = module.config
    positions = config.max_position_embeddings if positions is None else positions
    parts = ModuleBody(module, num_layers)
    like = next(module.parameters()).new_empty(config.hidden_size)

    def room() -> KVCache:
        return KVCache(
            blocks=1,
            layers=num_layers,
            kv_heads=kv_heads,
            head_dim=head_dim,
            feature_width=(num_layers + 1) * len(like),
            dtype=like.dtype,
            device=like.device,
        )

    def same(plain: Body, fast: Body) -> bool:
        return _same(plain, fast, config.vocab_size, positions, room)

    kernel = _tried(lambda: KernelBody.of(module, num_layers, positions))
    if kernel is not None and _tried(lambda: same(parts, kernel)):
        return kernel
    graphs = None
    if record:
        heads = config.num_attention_heads
        graphs = GraphBody.of(parts, like, heads, kv_heads, head_dim)
    if graphs is None:
        return parts
    # Compared as it fills batches up: by their sizes products are rounded in other ways.
    if _tried(lambda: same(graphs.unrecorded(), graphs)):
        return graphs
    _log.warning("recorded graphs give something else; operators are called one by one")
    return parts


def _tried(trial: Callable[[], _Result]) -> _Result | None:
    """What a trial gives; None where it fails, in whatever way an architecture differs."""
    try:
        return trial()
    except Exception as error:
        _log.debug("a faster form fails", reason=repr(error))
        return None


def _same(plain: Body, fast: Body, vocabulary: int, most: int, room: Callable[[], KVCache]) -> bool:
    """Whether `fast` leaves what `plain` leaves, near and far."""
    # Positions far off may turn heads another way for those that come after them.
    last = most - 1
    for positions in ((0, 1, 2), (last // 2, last - 1, last), (0, 1, 2)):
        tokens = [position % vocabulary for position in positions]
        wanted, got = (_left_by(body, tokens, positions, room()) for body in (plain, fast))
        if not all(map(near, got, wanted)):
            return False
    return True


def _left_by(
    body: Body, tokens: list[int], positions: tuple[int, ...], cache: KVCache
) -> list[torch.Tensor]:
    """What three rows and a single one behind them leave: final states, features, and KV."""
    layers = tuple(range(len(cache.keys) + 1))
    device = cache.features.device
    left: list[torch.Tensor] = []
    for batch, segment in (
        ((tokens, positions, (0, 1, 2)), Segment(0, 3, 0, 1)),
        ((tokens[:1], positions[:1], (3,)), Segment(0, 1, 0, 4)),
    ):
        rows = torch.tensor(batch, device=device)
        reach = Reach([segment], block=BLOCK_SIZE)
        hidden = body.run(rows, reach, cache, Kept(layers, cache.features, rows[2]))
        left.append(hidden.clone())
    width = cache.features.shape[1] // len(layers)
    kv = (pool[: cache.spare] for pool in (*cache.keys, *cache.values))
    return [*left, *torch.split(cache.features, width, -1), *kv]
