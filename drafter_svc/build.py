"""Puts a drafter together from its checkpoint, its target's embeddings and the settings."""

from dataclasses import dataclass

import torch

import speckernels as kernels
from drafter_svc import metrics
from drafter_svc.engine.sequences import SequenceTable
from drafter_svc.engine.worker import Worker
from drafter_svc.formats.checkpoint import LoadedDrafter, load_checkpoint
from drafter_svc.inference.chain import Chain
from drafter_svc.inference.fused_model import FusedDrafter
from drafter_svc.inference.kv_cache import KVCache
from drafter_svc.inference.sampling import DraftVocabulary
from drafter_svc.model.config import CheckpointError, DrafterConfig
from drafter_svc.model.feature_projection import ProjectionWeights
from drafter_svc.model.target_embedding import load_embedding, load_head
from drafter_svc.settings import DrafterSettings
from speckernels.device import device_name, free_memory, pick_device, taking, use
from specserve import logs
from specserve.model_source import ModelSource
from specserve.settings import StartError
from specwire.v1 import drafter_pb2 as pb

_SEQUENCES_PER_LINK = 1024
# For KV; a CPU's memory is taken as it is written.
_CPU_BYTES = 512 << 20
_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}

_log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Drafter:
    """A worker, not warm yet, and what it announces of itself.

    Verifiers in other processes may take over the `projection`, where there is one.
    """

    worker: Worker
    description: pb.DescribeResponse
    projection: ProjectionWeights | None = None


def load_drafter(settings: DrafterSettings, version: str) -> Drafter:
    """Load everything that the settings name; kernels are prepared before.

    Raises:
        StartError: the checkpoint, the target or the device cannot be used, or they do not fit.
    """
    device = pick_device(settings.device, last=True)
    use(device)
    dtype = kernels.default_dtype(device) if settings.dtype == "auto" else _DTYPES[settings.dtype]
    try:
        source = ModelSource.parse(settings.target).cached(
            str(dtype).removeprefix("torch."), settings.cache_folder
        )
        loaded = load_checkpoint(settings.checkpoint, dtype=dtype, device=device)
    except (CheckpointError, ValueError) as error:
        raise StartError(f"{str(error).rstrip('.')}.") from None
    config = loaded.config
    for sentence in loaded.notes:
        _log.warning("checkpoint read in one of several ways", note=sentence)
    embedding = _embedding(loaded, source, dtype, settings.trust_remote_code)
    if not config.own_head:
        head = load_head(source, dtype, settings.trust_remote_code)
        loaded.module.borrow_head(_fitting(head, "the head", source, config))
    row = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    budget = settings.kv_memory or _automatic(device)
    with taking("The drafter's --kv-memory", budget, device):
        cache = KVCache(*row, dtype, device, budget)
    max_length = min(config.max_position_embeddings, cache.budget_rows - settings.max_draft_tokens)
    if max_length < 1:
        raise StartError(f"The drafter's --kv-memory: {budget} bytes hold no sequence.")
    fused = FusedDrafter(loaded.module, embedding, max_length + settings.max_draft_tokens)
    vocabulary = DraftVocabulary(loaded.target_ids, config.vocab_size)
    heads = config.num_attention_heads, *row[1:]
    record = (
        kernels.CudaGraphCapture(device) if kernels.flash_serves(device, dtype, *heads) else None
    )
    worker = Worker(
        Chain(fused, vocabulary, cache, record),
        cache,
        SequenceTable(_SEQUENCES_PER_LINK, max_length, settings.lookup_match),
        settings.max_draft_tokens,
    )
    for position, chance in enumerate(config.expected_acceptance, 1):
        metrics.EXPECTED_ACCEPTANCE.labels(position).set(chance)
    description = _describe(loaded, settings, dtype, device, max_length, version)
    return Drafter(worker, description, ProjectionWeights.of(loaded.module))


def _automatic(device: torch.device) -> int:
    """Bytes for KV where no setting says so.

    A row of a drafter's single layer is about a thirtieth of its target's: of a sixteenth of a
    GPU it holds more tokens than a target has room for in a whole one. The rest stays for a target.
    """
    free = free_memory(device)
    return _CPU_BYTES if free is None else free // 16


def _embedding(
    loaded: LoadedDrafter, source: ModelSource, dtype: torch.dtype, trust_remote_code: bool
) -> torch.Tensor:
    config = loaded.config
    if config.own_embeddings:
        return loaded.module.embed_tokens.weight
    embedding = load_embedding(source, dtype, trust_remote_code)
    return _fitting(embedding, "embeddings", source, config)


def _fitting(
    rows: torch.Tensor, what: str, source: ModelSource, config: DrafterConfig
) -> torch.Tensor:
    """Rows of the target as they are, if there is one of the right width for each of its tokens."""
    expected = (config.vocab_size, config.hidden_size)
    if tuple(rows.shape) != expected:
        raise StartError(
            f"The checkpoint was made for another target: {what} of {source.name} are "
            f"{list(rows.shape)}, {list(expected)} in the checkpoint."
        )
    return rows


def _describe(
    loaded: LoadedDrafter,
    settings: DrafterSettings,
    dtype: torch.dtype,
    device: torch.device,
    max_length: int,
    version: str,
) -> pb.DescribeResponse:
    config = loaded.config
    return pb.DescribeResponse(
        checkpoint_hash=loaded.checkpoint_hash,
        target_fingerprint=config.target_fingerprint,
        aux_layer_ids=config.aux_layers,
        target_hidden_size=config.target_hidden_size,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        draft_vocab_size=config.draft_vocab_size,
        norm_output=config.norm_output,
        fc_norm=config.fc_norm,
        norm_before_residual=config.norm_before_residual,
        draft_temperature=config.draft_temperature,
        max_length=max_length,
        max_draft_tokens=settings.max_draft_tokens,
        dtype=str(dtype).removeprefix("torch."),
        version=version,
        lookup_match=settings.lookup_match,
        expected_acceptance=config.expected_acceptance,
        device=device_name(device),
    )
