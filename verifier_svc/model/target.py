"""The target model: loading, the packed forward, and the states captured on the way."""

from __future__ import annotations

import time
from collections.abc import Iterable
from collections.abc import Sequence as Items
from typing import Any

import torch
from transformers import PreTrainedModel

from speckernels import AttentionMetadata, QuerySegment, to_device_async
from speckernels.device import device_name
from speckernels.packed_linear import pack_linears
from specserve import logs
from specserve.model_source import ModelSource
from specwire.handshake import TargetIdentity
from verifier_svc.kv.block_pool import BLOCK_SIZE
from verifier_svc.kv.kv_cache import FeatureSlots, KVCache
from verifier_svc.model.decoder.attention import NAME, Unsupported
from verifier_svc.model.decoder.backends import CaptureSpec, decoder_of
from verifier_svc.model.decoder.cuda_graph_backend import CudaGraphBackend
from verifier_svc.model.decoder.fuse import fuse
from verifier_svc.model.decoder.select_backend import select_backend
from verifier_svc.model.lm_head import LMHead
from verifier_svc.model.loading.loader import TargetError, loading, read_config, read_model
from verifier_svc.model.loading.supported_models import positions_of
from verifier_svc.model.self_check.attention_survey import survey
from verifier_svc.model.self_check.checks import check_head, check_states, scale_head
from verifier_svc.model.self_check.reference_forward import Reference
from verifier_svc.parallel.rank_group import RankGroup, ReplicatedKVCache
from verifier_svc.parallel.sharding import fingerprint, shard_model, unwrap_dtensors
from verifier_svc.parallel.weights_digest import weights_digest
from verifier_svc.scheduling.scheduler import ScheduledRows

_log = logs.get(__name__)


class Target:
    """A causal language model of standard attention, run over packed rows.

    Captured features are the input to the decoder layers `aux_layers`, side by side:
    [rows, len(aux_layers) * hidden_size] in the model's dtype. `num_layers` in place of a layer
    is what leaves the last one, before the final norm.

    Among `ranks` this is one share of it: `kv_heads` are this rank's, states and features are
    whole. Rank 0's caches see to it that all ranks run what it runs.
    """

    def __init__(self, model: PreTrainedModel, name: str, ranks: RankGroup | None = None) -> None:
        """Take over a model, whose parts are replaced.

        Raises:
            TargetError: what would be served is not what the model's own forward gives.
        """
        self.model = model
        self.name = name
        # Sums of bf16 products that a GPU splits would be rounded in another way by each size of
        # batch, and tip more near-ties.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        config = model.config.get_text_config()
        self.config = config
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self.hidden_size: int = config.hidden_size
        self.num_layers: int = config.num_hidden_layers
        self._ranks = ranks
        self._like = torch.empty(0, dtype=self.dtype, device=self.device)
        self.fingerprint = fingerprint(model)
        self.aux_layers: tuple[int, ...] = default_aux_layers(self.num_layers)
        if ranks is not None:
            unwrap_dtensors(model, ranks)
        try:
            self._take_over(model)
        except Unsupported as error:
            raise TargetError(f"target: {name} cannot be served: {error}.") from error
        self.vocab_size = self.head.vocab_size

    @torch.inference_mode()
    def _take_over(self, model: PreTrainedModel) -> None:
        """See what the model does, replace its parts, and prove that it is still done."""
        begun = time.perf_counter()
        body: Any = decoder_of(model)
        seen = survey(model, self.num_layers, positions_of(self.config))
        self.max_position, self.kv_heads, self.head_dim = (
            seen.positions,
            seen.kv_heads,
            seen.head_dim,
        )
        reference = Reference.of(model, seen, self.aux_layers)
        self.head = LMHead(model.get_output_embeddings(), self.config)
        scale_head(reference, self.head, self.config)
        check_head(reference, self.head)
        replaced = time.perf_counter()
        fuse(body)
        self._body = select_backend(
            body,
            self.num_layers,
            self.kv_heads,
            self.head_dim,
            positions=seen.positions,
            scorings=seen.scorings,
            ranks=self._ranks.world if self._ranks else 1,
        )
        pack_linears(body)
        built = time.perf_counter()
        check_states(reference, self._body, seen, self.aux_layers)
        _log.info(
            "the target gives what its own forward gives",
            seconds=round(time.perf_counter() - built + replaced - begun, 2),
            rounding=f"{reference.noise:.1e}",
        )
        if self.max_position < (most := self.config.max_position_embeddings):
            _log.warning(
                "sequences are shorter than the model's limit: what comes later is not served",
                limit=most,
                served=self.max_position,
            )

    @property
    def shape(self) -> TargetIdentity:
        """What a drafter must have been made for."""
        return TargetIdentity(self.fingerprint, self.vocab_size, self.hidden_size)

    @property
    def devices(self) -> frozenset[str]:
        """Names of all that it runs on, see `speckernels.device.device_name`."""
        return self._ranks.devices if self._ranks else frozenset([device_name(self.device)])

    @property
    def form(self) -> str:
        """How its decoder is run: "kernel", "graphs" or "layers"; see `Body`."""
        return self._body.form

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of batches that are worth running before the first request, in rising order."""
        return self._body.sizes

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The model's own end tokens."""
        for config in (self.model.generation_config, self.config):
            eos = getattr(config, "eos_token_id", None)
            if eos is not None:
                return frozenset(eos if isinstance(eos, list) else [eos])
        return frozenset()

    @property
    def feature_width(self) -> int:
        """Elements of one captured row."""
        return len(self.aux_layers) * self.hidden_size

    def width_of(self, aux_layers: Items[int]) -> int:
        """What `feature_width` would be of these layers.

        Raises:
            TargetError: see `check_layers`.
        """
        self.check_layers(aux_layers)
        return len(aux_layers) * self.hidden_size

    def check_layers(self, aux_layers: Items[int]) -> None:
        """Check that the inputs to these layers can be captured.

        Raises:
            TargetError: no layer, or one that the target does not have.
        """
        if not aux_layers:
            raise TargetError("aux_layer_ids: at least one layer is needed.")
        for index in aux_layers:
            if not 0 <= index <= self.num_layers:
                raise TargetError(
                    f"aux_layer_ids: {index} is not a state of a target of {self.num_layers} "
                    "layers."
                )

    @torch.inference_mode()
    def capture(self, aux_layers: Items[int]) -> None:
        """Capture the input to these layers from now on, or the last layer's output.

        Raises:
            TargetError: no layer, or one that the target does not have.
        """
        self.check_layers(aux_layers)
        before, self.aux_layers = self.aux_layers, tuple(aux_layers)
        if isinstance(self._body, CudaGraphBackend):
            # Now, rather than in the rounds that follow.
            self._body.recapture(before, self.aux_layers)

    def reserve(self, blocks: int, feature_width: int) -> KVCache:
        """Memory for `blocks` of KV, and for features of that width beside it."""
        shape: dict[str, Any] = {
            "blocks": blocks,
            "layers": self.num_layers,
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "feature_width": feature_width,
            "dtype": self.dtype,
            "device": self.device,
        }
        if self._ranks is not None and self._ranks.leads:
            return ReplicatedKVCache(self._ranks, **shape)
        return KVCache(**shape)

    @torch.inference_mode()
    def run(self, works: Items[ScheduledRows], cache: KVCache) -> torch.Tensor:
        """Run one packed batch: write KV and features at its slots.

        Returns the final hidden states [draws, hidden_size] of the rows that are drawn from, in
        order, as `head` takes them. They hold until the next run, in whatever cache: engines that
        share a target must take turns.
        """
        drawn: list[int] = []
        row = 0
        for work in works:
            row += len(work.tokens)
            drawn += range(row - work.draws, row)
        with cache.writing(works):
            rows, reach = self._pack(works)
            picked = to_device_async(drawn, self.device, torch.long) if len(drawn) != row else None
            kept = CaptureSpec(self.aux_layers, cache.features, rows[2])
            hidden = self._body.run(rows, reach, cache, kept)
        return hidden if picked is None else hidden[picked]

    @torch.inference_mode()
    def states(
        self, parts: Items[FeatureSlots], cache: KVCache, aux_layers: Iterable[int]
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Run one packed batch for its states alone: write KV at its slots.

        Returns the final hidden states [rows, hidden_size] of all rows, after the final norm, and
        by layer the input to each of `aux_layers` [rows, hidden_size].
        """
        layers = tuple(aux_layers)
        with cache.writing(parts):
            rows, reach = self._pack(parts)
            features = self._like.new_empty(rows.shape[1], len(layers) * self.hidden_size)
            places = torch.arange(len(features), device=self.device)
            hidden = self._body.run(rows, reach, cache, CaptureSpec(layers, features, places))
        states = torch.split(features, self.hidden_size, -1) if layers else ()
        return hidden, dict(zip(layers, states, strict=True))

    def _pack(self, parts: Items[FeatureSlots]) -> tuple[torch.Tensor, AttentionMetadata]:
        """Tokens, positions and slots of all rows, int64 [3, rows], and what they attend to."""
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        segments: list[QuerySegment] = []
        for part in parts:
            start, count, base = len(tokens), len(part.tokens), part.slot
            segments.append(QuerySegment(start, count, base, part.position + 1, part.prompt))
            tokens += part.tokens
            positions += range(part.position, part.position + count)
            slots += range(base + part.position, base + part.position + count)
        rows = to_device_async([tokens, positions, slots], self.device)
        return rows, AttentionMetadata(segments, block=BLOCK_SIZE)


def default_aux_layers(num_layers: int) -> tuple[int, ...]:
    """EAGLE-3's default: the input to a low, a middle and a high layer."""
    return (min(2, num_layers - 1), num_layers // 2, max(0, num_layers - 3))


def load_target(
    source: ModelSource,
    *,
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool,
    ranks: RankGroup | None = None,
) -> Target:
    """Load a target, or this rank's share of it.

    Raises:
        TargetError: nothing that can be served is there.
        StartError: the ranks are about to load different targets, or cannot share this one.
    """
    shared: dict[str, Any] = {}
    code = {"trust_remote_code": trust_remote_code}
    with loading(source):
        config = read_config(source, **code)
        if ranks is not None:
            ranks.agree(weights_digest(source, config, dtype))
            shared["distributed_config"] = shard_model(config, ranks, **code)
        model = read_model(
            source, config=config, dtype=dtype, attn_implementation=NAME, **code, **shared
        )
        return Target(model.to(device).eval().requires_grad_(False), source.name, ranks)
