"""Puts the parts of a verifier together."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import torch

from speckernels import device
from specserve import logs
from specserve.model_source import ModelSource
from specserve.settings import StartError
from specwire.messages import DraftPort
from verifier_svc.draft_length.controller import DraftLengthController
from verifier_svc.engine.engine import Engine, Outbox
from verifier_svc.hidden_states.runner import FeatureRunner
from verifier_svc.kv.block_pool import BLOCK_SIZE, BlockPool, blocks_for
from verifier_svc.kv.kv_cache import KVCache
from verifier_svc.metrics import Metrics
from verifier_svc.model.decoder.attention import Unsupported
from verifier_svc.model.loading.gguf_unpack import unpacked_target
from verifier_svc.model.loading.loader import load_tokenizer_files, loading, read_config
from verifier_svc.model.target import Target, load_target
from verifier_svc.parallel.rank_group import RankGroup
from verifier_svc.request.sequence import Sequence
from verifier_svc.request.types import GenerationRequest, Sampling
from verifier_svc.sampling.sampler import sample
from verifier_svc.sampling.sampling_row import SamplingRow
from verifier_svc.sampling.verification import Accept, verify
from verifier_svc.scheduling.prefill_budget import PrefillBudget
from verifier_svc.scheduling.scheduler import ScheduledRows, Scheduler
from verifier_svc.settings import VerifierSettings
from verifier_svc.speculation.coordinator import DraftCoordinator

# For KV and features: a CPU's memory is taken as it is written.
_CPU_BYTES = 2 << 30
# What graphs, workspaces and the largest draw of the warm-up may take of a GPU.
_GPU_RESERVE = 4 << 30

_log = logs.get(__name__)


def find_target(settings: VerifierSettings) -> ModelSource:
    """Where the target is read from: its own place, or the cache in place of a GGUF file.

    Kernels are prepared before: what they serve decides on the dtype.

    Raises:
        StartError: it is not there, or cannot be served.
    """
    device.prepare(settings.torch_device, settings.compile, settings.cpu_level)
    try:
        return unpacked_target(
            ModelSource.parse(settings.target), settings.torch_dtype, settings.cache_folder
        )
    except ValueError as error:
        raise StartError(str(error)) from None


def build_target(
    settings: VerifierSettings, source: ModelSource, ranks: RankGroup | None = None
) -> Target:
    """Load the target, or this rank's share of it.

    Raises:
        StartError: it cannot be served.
    """
    _log.info("loading the target", target=source.name)
    own = settings.torch_device if ranks is None else ranks.device
    device.use(own)
    try:
        return load_target(
            source,
            dtype=settings.torch_dtype,
            device=own,
            trust_remote_code=settings.trust_remote_code,
            ranks=ranks,
        )
    except ValueError as error:
        raise StartError(str(error)) from None


def tokenizer_files(settings: VerifierSettings, source: ModelSource) -> dict[str, bytes]:
    """The files from which the target's text becomes tokens, by name.

    Raises:
        StartError: the target has none, or is of a family that is not served.
    """
    try:
        with loading(source):
            read_config(source, trust_remote_code=settings.trust_remote_code)
        return load_tokenizer_files(source, trust_remote_code=settings.trust_remote_code)
    except ValueError as error:
        raise StartError(str(error)) from None


def document_length(settings: VerifierSettings, target: Target) -> int:
    """Tokens of a document of the Features call at most."""
    return min(settings.max_document_len, target.max_position)


def build_cache(settings: VerifierSettings, target: Target) -> tuple[KVCache, int]:
    """Reserve the KV cache, as many blocks as its memory holds and sequences can use.

    Returns it with the prompt and output tokens of a sequence at most: those that are asked for,
    or else the target's own limit, as far as it fits.

    Raises:
        StartError: more was asked for than the target was made for or the memory holds.
    """
    asked, most = settings.max_model_len, target.max_position
    if asked is not None and asked > most:
        raise StartError(f"--max-model-len: {asked} is over the target's limit of {most}.")
    shape = (target.num_layers, target.kv_heads, target.head_dim, target.feature_width)
    block_bytes = KVCache.bytes_per_slot(*shape, target.dtype) * BLOCK_SIZE
    blocks = (settings.kv_memory or automatic_memory(target.device)) // block_bytes
    length = asked or min(most, blocks * BLOCK_SIZE)
    per_sequence = blocks_for(length)
    if not length or blocks < per_sequence:
        needed = max(1, per_sequence) * block_bytes
        raise StartError(
            f"--kv-memory: a sequence of {length or 1} tokens takes {needed >> 20} MiB; "
            "give more, or lower --max-model-len."
        )
    if asked is None and length < most:
        _log.warning(
            "sequences are shorter than the target allows: more do not fit into --kv-memory",
            max_model_len=length,
            target=most,
        )
    blocks = min(blocks, per_sequence * settings.sequences)
    return target.reserve(blocks, target.feature_width), length


def automatic_memory(own: torch.device) -> int:
    """Bytes for KV and features where no setting says so; the target is loaded.

    Raises:
        StartError: a GPU has nothing left for them.
    """
    free = device.free_memory(own)
    if free is None:
        return _CPU_BYTES
    size = int(0.9 * free) - _GPU_RESERVE
    if size <= 0:
        raise StartError(
            f"--kv-memory: {free >> 20} MiB are free on {own} beside the target, and warming up "
            f"may take {_GPU_RESERVE >> 20}; say how much of them is for KV."
        )
    return size


def build_engine(
    settings: VerifierSettings,
    target: Target,
    port: DraftPort[torch.Tensor] | None,
    deliver: Callable[[Outbox], None],
    metrics: Metrics,
    verify: Accept = verify,
) -> Engine:
    """Assemble an engine that has not been started.

    What a service draws is what `verify` says: only a benchmark gives another.

    Raises:
        StartError: the settings do not fit the target.
    """
    device.use(target.device)
    cache, max_model_len = build_cache(settings, target)
    try:
        warm_up(target, cache, settings.sequences * (1 + settings.max_draft_tokens))
    except torch.OutOfMemoryError:
        raise StartError(
            f"--kv-memory: what it leaves free on {target.device} is too little for warming up; "
            "give less."
        ) from None
    except (Unsupported, TypeError) as error:
        raise StartError(f"target: its attention is not standard: {error}") from None
    policy = DraftLengthController(settings.max_draft_tokens, settings.fixed_draft_length)
    return Engine(
        target=target,
        cache=cache,
        scheduler=Scheduler(
            BlockPool(len(cache.features) // BLOCK_SIZE),
            max_sequences=settings.sequences,
            pace=PrefillBudget(policy.step_cost, settings.budget),
            keep=settings.prefix_cache,
        ),
        drafting=DraftCoordinator(
            port, policy, cache, settings.draft_deadline_ms * 1e-3, target.devices
        ),
        policy=policy,
        features=FeatureRunner(
            target,
            max_tokens=document_length(settings, target),
            budget=settings.budget,
        ),
        max_model_len=max_model_len,
        deliver=deliver,
        metrics=metrics,
        accept=verify,
    )


@torch.inference_mode()
def warm_up(target: Target, cache: KVCache, most_rows: int) -> None:
    """Run shapes that occur, so that the first request does not pay for first uses.

    `most_rows` is what decoding sequences may have at once. The engine is in inference mode too:
    what is compiled for another mode is of no use to it.
    """
    _log.info("warming up", cached_tokens=len(cache.features))
    sequence = Sequence(0, GenerationRequest("", (0,) * 16, 16, Sampling()), frozenset(), 16)
    sequence.extent = BlockPool(1).take(1)
    needed = bisect_left(target.sizes, most_rows) + 1
    # Large ones first: the memory of a recorded one is used again by those that need less.
    for size in reversed(target.sizes[:needed]):
        # As sequences with drafts, and without.
        for count in (16, 1):
            rest = size % count
            counts = [count] * (size // count) + [rest] * bool(rest)
            hidden = target.run(
                [ScheduledRows(sequence, 16 - n, (0,) * n, n) for n in counts], cache
            )
        logits = target.head.logits(hidden)
        for sampling in (Sampling(temperature=1.0), Sampling(temperature=1.0, top_p=0.9)):
            sample(logits, [SamplingRow(sampling, 16)] * size)
        _log.debug("warmed up", rows=size)
