"""Batched chains over sequences of different lengths.

``append`` runs the layer over new real entries and keeps their KV; ``draft`` starts each chain at
the last real entry and runs one row per sequence and step on the recycled state. Entry i sits at
RoPE position i, and so does the guess that would become entry i.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from drafter_svc.cache import Slot
from drafter_svc.drawing import DraftVocabulary, Penalties, draw
from drafter_svc.fused import Attend, FusedDrafter
from specwire.draft import Opening


@dataclass(frozen=True, slots=True)
class Rows:
    """Real entries [start, start + len(tokens)) of one sequence, its slab large enough.

    ``features`` is ``[len(tokens), captured * H]`` in the weights' dtype and on its device.
    """

    slot: Slot
    start: int
    tokens: Sequence[int]
    features: Tensor


@dataclass(frozen=True, slots=True)
class ChainRequest:
    """``length`` draft tokens wished for after ``base`` real entries, at least one of each.

    The slab has ``base + length - 1`` rows at least. ``penalties`` know the committed tokens.
    """

    slot: Slot
    base: int
    length: int
    opening: Opening
    penalties: Penalties | None = None


@dataclass(frozen=True, slots=True)
class Guess:
    """Target ids, and the drafter's probability of each at temperature 1."""

    tokens: tuple[int, ...]
    confidence: tuple[float, ...]


class Chain:
    """The drafter with its vocabulary. All calls come from one thread."""

    def __init__(self, drafter: FusedDrafter, vocabulary: DraftVocabulary) -> None:
        self._drafter = drafter
        self._vocabulary = vocabulary
        self._kv_heads = drafter.config.num_key_value_heads
        self._layers = drafter.config.num_hidden_layers
        self._window = drafter.config.sliding_window

    def prepare(self, features: Tensor | None) -> Tensor:
        """Features of any dtype and device as `Rows` take them; None stands for no rows."""
        if features is None:
            return self.zeros(0)
        return features.to(self._drafter.device, self._drafter.dtype)

    def zeros(self, rows: int) -> Tensor:
        """Features of no meaning."""
        width = self._drafter.config.target_hidden_size * len(self._drafter.config.aux_layers)
        return torch.zeros(rows, width, dtype=self._drafter.dtype, device=self._drafter.device)

    def penalties(self, opening: Opening) -> Penalties | None:
        """Penalties of a new sequence that knows its first token; None where it has none."""
        return Penalties.of(opening, self._vocabulary, self._drafter.device)

    @torch.inference_mode()
    def append(self, batch: Sequence[Rows]) -> None:
        """Run new real entries in one pass. Rows of one sequence must be in order."""
        device = self._drafter.device
        counts = [len(rows.tokens) for rows in batch]
        tokens = torch.tensor([t for rows in batch for t in rows.tokens], device=device)
        spans = [range(rows.start, rows.start + n) for rows, n in zip(batch, counts, strict=True)]
        positions = torch.tensor([i for span in spans for i in span], device=device)
        features = [rows.features for rows in batch]
        state = self._drafter.fuse(features[0] if len(features) == 1 else torch.cat(features))

        def attend(queries: Tensor, kv: Tensor, layer: int) -> Tensor:
            out = queries.new_empty(len(queries), queries.shape[1] * queries.shape[2])
            at = 0
            for rows, count in zip(batch, counts, strict=True):
                piece = slice(at, at + count)
                stop = rows.start + count
                slab = self._slab(rows.slot, layer)
                slab[rows.start : stop] = kv[piece]
                out[piece] = self._attend_causal(
                    queries[piece], slab[self._oldest(rows.start) : stop]
                )
                at += count
            return out

        hidden = self._drafter.layer(tokens, state, positions, attend)
        at = 0
        for rows, count in zip(batch, counts, strict=True):
            at += count
            rows.slot.hidden = hidden[at - 1].clone()

    @torch.inference_mode()
    def draft(self, requests: Sequence[ChainRequest]) -> list[Guess]:
        """Run a chain for each request; longer ones go on with fewer rows."""
        order = sorted(range(len(requests)), key=lambda i: -requests[i].length)
        batch = [requests[i] for i in order]
        penalties = [r.penalties.fork() if r.penalties else None for r in batch]
        hidden = torch.stack([r.slot.hidden for r in batch if r.slot.hidden is not None])
        state, logits = self._drafter.finish(hidden)
        positions = torch.tensor([r.base - 1 for r in batch], device=self._drafter.device)
        chosen: list[Tensor] = []
        confidence: list[Tensor] = []
        for step in range(batch[0].length):
            if step:
                active = sum(request.length > step for request in batch)
                batch, positions = batch[:active], positions[:active] + 1
                tokens = self._vocabulary.target_ids[chosen[-1][:active]]
                hidden = self._drafter.layer(
                    tokens, state[:active], positions, self._single_attend(batch, step)
                )
                state, logits = self._drafter.finish(hidden)
            ids = self._choose(logits, batch, penalties, step)
            chosen.append(ids)
            confidence.append(logits.softmax(-1).gather(1, ids[:, None])[:, 0])
        return self._collect(order, chosen, confidence)

    def _collect(
        self, order: Sequence[int], chosen: Sequence[Tensor], confidence: Sequence[Tensor]
    ) -> list[Guess]:
        """Guesses in the order of the requests; ``order[i]`` was row i of every step."""
        ids = self._vocabulary.target_ids[torch.cat(list(chosen))].tolist()
        probabilities = torch.cat(list(confidence)).nan_to_num(0.0).tolist()
        starts = [0]
        for step in chosen:
            starts.append(starts[-1] + len(step))
        guesses: list[Guess] = [Guess((), ())] * len(order)
        for row, request in enumerate(order):
            at = [
                start + row for start, step in zip(starts, chosen, strict=False) if row < len(step)
            ]
            guesses[request] = Guess(tuple(ids[i] for i in at), tuple(probabilities[i] for i in at))
        return guesses

    def _choose(
        self,
        logits: Tensor,
        batch: Sequence[ChainRequest],
        penalties: Sequence[Penalties | None],
        step: int,
    ) -> Tensor:
        """Draft ids int64 ``[n]`` of this step."""
        penalized = [i for i in range(len(batch)) if penalties[i] is not None]
        if penalized:
            logits = logits.clone()
            for i in penalized:
                logits[i] = penalties[i].apply(logits[i])  # type: ignore[union-attr]
        ids = logits.argmax(-1)
        drawn = [i for i, request in enumerate(batch) if request.opening.temperature > 0]
        if drawn:
            ids[drawn] = draw(
                logits[drawn],
                [batch[i].opening for i in drawn],
                [batch[i].base + 1 + step for i in drawn],
                self._vocabulary,
                self._drafter.config.draft_temperature,
            )
        for i in penalized:
            penalties[i].extend([int(self._vocabulary.target_ids[ids[i]])])  # type: ignore[union-attr]
        return ids

    def _single_attend(self, batch: Sequence[ChainRequest], step: int) -> Attend:
        """One row per sequence, behind all that its slab holds."""

        def attend(queries: Tensor, kv: Tensor, layer: int) -> Tensor:
            out = []
            for i, request in enumerate(batch):
                at = request.base - 1 + step
                slab = self._slab(request.slot, layer)
                slab[at] = kv[i]
                out.append(self._attend(queries[i : i + 1], slab[self._oldest(at) : at + 1]))
            return out[0] if len(out) == 1 else torch.cat(out)

        return attend

    def _slab(self, slot: Slot, layer: int) -> Tensor:
        """The rows of one layer, ``[rows, 2 * kv_heads, d]``."""
        if self._layers == 1:
            return slot.kv
        width = 2 * self._kv_heads
        return slot.kv[:, layer * width : (layer + 1) * width]

    def _oldest(self, position: int) -> int:
        """The first entry that the one at ``position`` sees."""
        return 0 if self._window is None else max(0, position + 1 - self._window)

    def _attend(self, queries: Tensor, kv: Tensor, mask: Tensor | None = None) -> Tensor:
        """Queries ``[n, heads, d]`` over ``kv`` ``[keys, 2 * kv_heads, d]``: ``[n, heads * d]``.

        The heads of a group share their keys, so they are folded into the rows; so is ``mask``.
        """
        n, heads, d = queries.shape
        kv_heads = self._kv_heads
        both = kv.transpose(0, 1)[None]
        folded = queries.view(n, kv_heads, -1, d).transpose(0, 1).reshape(1, kv_heads, -1, d)
        out = functional.scaled_dot_product_attention(
            folded, both[:, :kv_heads], both[:, kv_heads:], attn_mask=mask
        )
        return out.view(kv_heads, n, -1, d).transpose(0, 1).reshape(n, heads * d)

    def _attend_causal(self, queries: Tensor, kv: Tensor) -> Tensor:
        """The last rows of a sequence, each over what it sees of ``kv``: the past and itself."""
        n, keys = len(queries), len(kv)
        if n == 1:
            return self._attend(queries, kv)
        group = queries.shape[1] // self._kv_heads
        device = queries.device
        last = torch.arange(keys - n, keys, device=device).repeat_interleave(group)
        past = torch.arange(keys, device=device)
        mask = past <= last[:, None]
        if self._window is not None:
            mask &= past > last[:, None] - self._window
        return self._attend(queries, kv, mask)
