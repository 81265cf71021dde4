"""Which form of a decoder runs: as one kernel, as recorded graphs, or layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from speckernels import AttentionMetadata, CudaGraphCapture, QuerySegment
from specserve import logs
from verifier_svc.kv.block_pool import BLOCK_SIZE
from verifier_svc.kv.kv_cache import KVCache
from verifier_svc.model.decoder.attention import Scoring
from verifier_svc.model.decoder.backends import (
    CaptureSpec,
    CpuKernelBackend,
    DecoderBackend,
    TransformersBackend,
)
from verifier_svc.model.decoder.cuda_graph_backend import CudaGraphBackend, refusal
from verifier_svc.model.decoder.fuse import is_close
from verifier_svc.model.decoder.sync_detector import NoWaits

_log = logs.get(__name__)


class _Refused(Exception):
    """Why a faster form does not serve a decoder."""


@torch.inference_mode()
def select_backend(
    module: Any,
    num_layers: int,
    kv_heads: int,
    head_dim: int,
    *,
    positions: int | None = None,
    scorings: Sequence[Scoring] = (),
    ranks: int = 1,
) -> DecoderBackend:
    """A decoder whose parts have been fused, in a faster form if that gives the same.

    `positions` are as many as sequences may have, by default the model's own limit; `scorings` is
    what its layers ask for, by default keys alone. One of several `ranks` is not recorded. Which
    form it is, and why no faster one, is logged.
    """
    config = module.config
    positions = config.max_position_embeddings if positions is None else positions
    parts = TransformersBackend(module, num_layers)
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

    def kernel() -> tuple[DecoderBackend, DecoderBackend]:
        if (body := CpuKernelBackend.of(module, num_layers, positions)) is None:
            raise _Refused("no kernel takes it as a whole")
        return parts, body

    def graphs() -> tuple[DecoderBackend, DecoderBackend]:
        if ranks > 1:
            raise _Refused(
                "several ranks are not recorded: what one GPU holds may be faster on one"
            )
        heads = config.num_attention_heads
        if reason := refusal(like, heads, kv_heads, head_dim, scorings):
            raise _Refused(reason)
        with NoWaits():  # type: ignore[no-untyped-call]
            _left_by(parts, [0, 1, 2], (0, 1, 2), room())
        body = CudaGraphBackend(parts, len(like), CudaGraphCapture(like.device))
        # Compared as it fills batches up: by their sizes products are rounded in other ways.
        return body.unrecorded(), body

    reasons = []
    for make in (kernel, graphs):
        try:
            plain, fast = make()
            _compare(plain, fast, config.vocab_size, positions, (room(), room()))
            sizes = {"sizes": len(fast.sizes)} if fast.form == "graphs" else {}
            _log.info("decoder", form=fast.form, **sizes)
            return fast
        except Exception as error:  # architectures differ in as many ways
            reasons.append(str(error).partition("\n")[0] or repr(error))
    # On a GPU this is what nobody wants.
    tell = _log.info if like.device.type == "cpu" else _log.warning
    tell("decoder", form=parts.form, reason="; ".join(reasons))
    return parts


def _compare(
    plain: DecoderBackend,
    fast: DecoderBackend,
    vocabulary: int,
    most: int,
    rooms: tuple[KVCache, KVCache],
) -> None:
    """See that `fast` leaves what `plain` leaves, near and far.

    Raises:
        _Refused: it does not.
    """
    # Positions far off may turn heads another way for those that come after them.
    last = most - 1
    for positions in ((0, 1, 2), (last // 2, last - 1, last), (0, 1, 2)):
        tokens = [position % vocabulary for position in positions]
        wanted, got = (
            _left_by(body, tokens, positions, cache)
            for body, cache in zip((plain, fast), rooms, strict=True)
        )
        if isinstance(fast, CudaGraphBackend) and fast.ended:
            raise _Refused(fast.ended)
        if not all(map(is_close, got, wanted)):
            raise _Refused(f"as {fast.form} it gives something else")


def _left_by(
    body: DecoderBackend, tokens: list[int], positions: tuple[int, ...], cache: KVCache
) -> list[torch.Tensor]:
    """What three rows and a single one behind them leave: final states, features, and KV."""
    layers = tuple(range(len(cache.keys) + 1))
    device = cache.features.device
    left: list[torch.Tensor] = []
    for batch, segment in (
        ((tokens, positions, (0, 1, 2)), QuerySegment(0, 3, 0, 1)),
        ((tokens[:1], positions[:1], (3,)), QuerySegment(0, 1, 0, 4)),
    ):
        rows = torch.tensor(batch, device=device)
        reach = AttentionMetadata([segment], block=BLOCK_SIZE)
        hidden = body.run(rows, reach, cache, CaptureSpec(layers, cache.features, rows[2]))
        left.append(hidden.clone())
    width = cache.features.shape[1] // len(layers)
    kv = (pool[: cache.spare] for pool in (*cache.keys, *cache.values))
    return [*left, *torch.split(cache.features, width, -1), *kv]
