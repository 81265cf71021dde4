"""Where this check knows more of the system than its interfaces say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

import speckernels as kernels
from drafter_svc.engine.sequences import SequenceTable
from drafter_svc.engine.worker import Worker
from drafter_svc.inference.chain import Chain
from drafter_svc.inference.fused_model import FusedDrafter
from drafter_svc.inference.kv_cache import KVCache
from drafter_svc.inference.sampling import DraftVocabulary
from drafter_svc.model.eagle import EagleDrafter
from speckernels import CaptureFn, QuerySegment, VarlenTables, flash_attention
from verifier_svc.model.decoder.cuda_graph_backend import CudaGraphBackend
from verifier_svc.model.target import Target

_LINK = 1


def recorder(device: torch.device) -> CaptureFn:
    """What records on this device; a CPU calls the work instead."""
    if device.type != "cuda":
        return kernels.eager_capture
    return kernels.CudaGraphCapture(device)


def spans(segments: list[QuerySegment], empty: int, keys: torch.Tensor) -> VarlenTables:
    """Segments as a GPU takes them, as many more behind them that have no rows."""
    rows = segments[-1].row + segments[-1].count
    table = flash_attention.varlen_table([*segments, *[QuerySegment(rows, 0, 0, 1)] * empty])
    there = torch.tensor(table, dtype=torch.int32, device=keys.device)
    return VarlenTables.of(there, max(segment.count for segment in segments), len(keys))


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    spans: VarlenTables,
    window: int | None = None,
) -> torch.Tensor:
    """FlashAttention of packed rows: [rows, heads, d]."""
    spans = spans if window is None else spans.within(window)
    return flash_attention.flash_attention(query, keys, values, spans, query.shape[-1] ** -0.5)


def form(target: Target) -> str:
    """Which form of its decoder runs."""
    return target.form


def recorded(target: Target) -> bool:
    """Whether its decoder is recorded, and recording has not failed."""
    return target.form == "graphs"


def graphs(target: Target) -> int:
    """How many graphs its decoder has."""
    body: Any = target._body
    return sum(map(len, body._graphs.values())) if isinstance(body, CudaGraphBackend) else 0


@contextmanager
def eager(target: Target) -> Iterator[None]:
    """The target's operators are called one by one in this block."""
    body: Any = target._body
    target._body = getattr(body, "_body", body)
    try:
        yield
    finally:
        target._body = body


def drafter(
    module: EagleDrafter, memory: int, longest: int, record: CaptureFn | None
) -> tuple[Worker, int]:
    """A worker with chains of that length at most, as a service has it, and its link."""
    config = module.config
    like = module.norm.weight
    fused = FusedDrafter(module, module.embed_tokens.weight, config.max_position_embeddings)
    vocabulary = DraftVocabulary(
        torch.arange(config.draft_vocab_size, device=like.device), config.vocab_size
    )
    row = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    cache = KVCache(*row, like.dtype, like.device, memory)
    sequences = SequenceTable(1024, config.max_position_embeddings - longest)
    worker = Worker(Chain(fused, vocabulary, cache, record), cache, sequences, longest)
    worker.open_link(_LINK)
    return worker, _LINK


def chains_recorded(worker: Worker) -> bool:
    """Whether a worker's chains are recorded, and recording has not failed."""
    return worker.alive
