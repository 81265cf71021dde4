"""Batched chains over sequences of different lengths.

``append`` runs the layer over new real entries and keeps their KV; ``draft`` starts each chain at
the last real entry and runs one row per sequence and step on the recycled state. Entry i sits at
RoPE position i, and so does the guess that would become entry i.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drafter_svc.inference.chain_runner import ChainRequest, ChainRunner
from drafter_svc.inference.chain_states import ChainStates
from drafter_svc.inference.entry_forward import EntryForward, EntryRows
from drafter_svc.inference.fused_model import FusedDrafter
from drafter_svc.inference.kv_cache import KVCache
from drafter_svc.inference.penalties import Penalties, PenaltyTable
from drafter_svc.inference.sampling import DraftVocabulary
from speckernels import CapturedGraph, CaptureFn, flash_refusal, synchronize, to_host
from specwire.messages import SequenceContext


@dataclass(frozen=True, slots=True)
class ChainOutput:
    """Target ids, and the drafter's probability of each at temperature 1."""

    tokens: tuple[int, ...]
    confidence: tuple[float, ...]


class Chain:
    """The drafter with its vocabulary. All calls come from one thread."""

    def __init__(
        self,
        drafter: FusedDrafter,
        vocabulary: DraftVocabulary,
        cache: KVCache,
        record: CaptureFn | None = None,
    ) -> None:
        """Take the parts, and what records the work of a device that can do so."""
        self._drafter = drafter
        self._vocabulary = vocabulary
        self._penalties = PenaltyTable(vocabulary, drafter.device)
        self._recording = None if record is None else CapturedGraph(record)
        self._states = ChainStates(drafter.config.hidden_size, drafter.dtype, drafter.device)
        whole = drafter.whole(vocabulary.target_ids)
        parts = cache, self._states, self._recording
        self._entries = EntryForward(drafter, whole, *parts)
        self._runner = ChainRunner(drafter, vocabulary, whole, *parts)

    @property
    def alive(self) -> bool:
        """Whether work is recorded, and nothing that was tried so far could not be."""
        return self._recording is not None and self._recording.alive

    @property
    def form(self) -> str:
        """How chains are run, as far as they have been."""
        if self.alive:
            return f"{self._runner.recorded} recorded graphs, {self._entries.recorded} of entries"
        if self._runner.by_kernel:
            return "one kernel"
        if self._recording is not None:
            return "step by step: recording has failed"
        config = self._drafter.config
        heads = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        refusal = flash_refusal(self.device, self._drafter.dtype, *heads)
        why = refusal or "there is nothing to record it with"
        return f"step by step: there is no kernel for this drafter here, and {why}"

    @property
    def device(self) -> torch.device:
        """Where chains run."""
        return self._drafter.device

    def shapes(self, longest: int) -> list[tuple[int, list[int]]]:
        """Batches of chains worth running before the first request, the smallest first.

        Each is how many chains there are, and the lengths up to ``longest`` to run them at.
        """
        return self._runner.shapes(longest)

    def zeros(self, rows: int, width: int | None = None) -> Tensor:
        """Features of no meaning, by default as wide as captured ones."""
        return self._entries.zeros(rows, width)

    def prepare(self, features: Tensor | None) -> Tensor:
        """Features of any dtype and device as `append` takes them; None stands for no rows."""
        if features is None:
            return self.zeros(0)
        return features.to(self._drafter.device, self._drafter.dtype)

    def finish(self) -> None:
        """Return once the device has done all that was asked of it."""
        synchronize(self._drafter.device)

    def open_penalties(self, opening: SequenceContext) -> Penalties | None:
        """Penalties of a new sequence that knows its first token; None where it has none."""
        return self._penalties.open(opening)

    def close_penalties(self, penalties: Penalties) -> None:
        """The sequence is no more."""
        self._penalties.close(penalties)

    @torch.inference_mode()
    def append(
        self, batch: Sequence[EntryRows], features: Sequence[Tensor], *, keys_only: bool = False
    ) -> Tensor:
        """Run new real entries in one pass. Rows of one sequence must be in order.

        Args:
            batch: the entries.
            features: pieces ``[rows, captured * H]``, or ``[rows, H]`` where a verifier has
                projected them, one behind the other those of all entries.
            keys_only: no chain can start from the last of them then, only from later ones.

        Returns the sum of each entry's features, fp32 on the CPU, finite where they all are. It
        is there once the device has been waited for.
        """
        return self._entries.append(batch, features, keys_only=keys_only)

    @torch.inference_mode()
    def draft(self, requests: Sequence[ChainRequest]) -> list[ChainOutput]:
        """Run a chain for each request; longer ones go on with fewer rows."""
        groups = [group for group in _apart(requests) if group]
        drawn: list[Tensor] = []
        for group in groups:
            batch = [requests[i] for i in group]
            known = [r.penalties for r in batch if r.penalties is not None]
            drawn += self._runner.draw(batch, self._penalties.of(known) if known else None)
        fetched = to_host(*drawn) if drawn else []
        guesses: list[ChainOutput] = [ChainOutput((), ())] * len(requests)
        for group, winners, shares in zip(groups, fetched[::2], fetched[1::2], strict=True):
            made = self._guesses(winners, shares, [requests[i].length for i in group])
            for request, guess in zip(group, made, strict=True):
                guesses[request] = guess
        return guesses

    def _guesses(
        self, winners: Tensor, shares: Tensor, lengths: Sequence[int]
    ) -> Iterator[ChainOutput]:
        """What chains drew in their steps; logits that are no numbers draw the first token."""
        ids = self._vocabulary.ids
        drawn: list[list[int]] = winners.clamp(min=0).t().tolist()
        confidence: list[list[float]] = shares.nan_to_num(0.0).clamp(max=1.0).t().tolist()
        # Batches that were filled up have more rows.
        for length, tokens, trust in zip(lengths, drawn, confidence, strict=False):
            yield ChainOutput(
                tuple([ids[token] for token in tokens[:length]]), tuple(trust[:length])
            )


def _apart(requests: Sequence[ChainRequest]) -> Iterator[list[int]]:
    """Requests without penalties and those with some, longest first."""
    for penalized in (False, True):
        group = [i for i, r in enumerate(requests) if (r.penalties is not None) == penalized]
        yield sorted(group, key=lambda i: -requests[i].length)
