"""What a run starts from, as its settings say."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from drafter_svc.model.config import DrafterConfig
from drafter_svc.model.eagle import EagleDrafter
from drafter_svc.train.data.documents import Document, digest, split
from drafter_svc.train.data.draft_vocab import choose_draft_vocabulary, count_tokens
from drafter_svc.train.run.distill_batch import TargetFeatures
from drafter_svc.train.run.feature_cache import FeatureCache
from drafter_svc.train.run.init_weights import drafter_config, initial_drafter, trained_drafter
from drafter_svc.train.settings import TrainSettings
from drafter_svc.train.target.feature_source import FeatureSource
from drafter_svc.train.target.target import Target

_ARMS = ("fc_norm", "norm_output", "norm_before_residual", "norm_before_fc", "mtp_head")


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents to train on and documents to measure on; ``key`` names the former."""

    train: list[Document]
    held_out: list[Document]
    key: str


def make_corpus(settings: TrainSettings, documents: Sequence[Document]) -> Corpus:
    """Raises ``ValueError`` when nothing is left to train on."""
    train, held_out = split(documents, settings.held_out, settings.seed)
    if not train:
        raise ValueError(f"held_out is {settings.held_out} but data has {len(documents)} documents")
    return Corpus(train, held_out, digest(train))


def make_drafter(
    settings: TrainSettings, target: Target, corpus: Corpus
) -> tuple[EagleDrafter, Tensor]:
    """A new drafter in fp32, or that of ``settings.init``, and its draft vocabulary."""
    if settings.init:
        return trained_drafter(settings.init, target)
    counts = count_tokens(corpus.train, target.config.vocab_size)
    size = min(settings.draft_vocab, len(counts))
    end = [target.tokenizer.eos_token_id]
    draft_ids = choose_draft_vocabulary(counts, size, corpus.held_out, always=end)
    config = drafter_config(target, size, _arms(settings, target))
    return initial_drafter(config, target, draft_ids, settings.seed), draft_ids


def _arms(settings: TrainSettings, target: Target) -> dict[str, Any]:
    arms: dict[str, Any] = {name: getattr(settings, name) for name in _ARMS}
    arms["num_hidden_layers"] = settings.layers
    if settings.sliding_window:
        arms["sliding_window"] = settings.sliding_window
    if settings.aux_layers:
        arms["aux_layers"] = tuple(settings.aux_layers)
    elif settings.mtp_head:
        arms["aux_layers"] = (target.config.num_hidden_layers,)
    return arms


def make_classroom(
    settings: TrainSettings,
    target: Target,
    source: FeatureSource,
    config: DrafterConfig,
    corpus: Corpus,
    folder: Path,
) -> tuple[TargetFeatures, FeatureCache | None]:
    """Lessons by ``source``, and the cache in ``folder`` if there is to be one."""
    totals = settings.loss == "lk"
    cache = None
    if settings.feature_cache_gib:
        key = f"{target.fingerprint} {config.aux_layers} {settings.teach_prompts} {totals}"
        cache = FeatureCache(
            folder,
            f"{key} {corpus.key}",
            limit=int(settings.feature_cache_gib * 2**30),
            lengths=[len(document.ids) for document in corpus.train],
            features=len(config.aux_layers) * config.target_hidden_size,
            final=config.target_hidden_size,
        )
    head, prompts = target.head, settings.teach_prompts
    return TargetFeatures(source, config.aux_layers, head, prompts, totals, cache), cache
