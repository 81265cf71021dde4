"""Batched chains over sequences of different lengths.

``append`` runs the layer over new real entries and keeps their KV; ``draft`` starts each chain at
the last real entry and runs one row per sequence and step on the recycled state. Entry i sits at
RoPE position i, and so does the guess that would become entry i.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drafter_svc.cache import KvCache, Slot
from drafter_svc.drawing import DraftVocabulary, Penalties, noise_of
from drafter_svc.fused import Attend, FusedDrafter
from drafter_svc.graph import ChainGraphs, Chains, Drawn
from drafter_svc.steps import Step, device_steps, host_steps, segments_of
from specwire import kernels
from specwire.draft import Opening
from specwire.kernels import Reach, Record, fetch, finish, put


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

    def __init__(
        self,
        drafter: FusedDrafter,
        vocabulary: DraftVocabulary,
        cache: KvCache,
        record: Record | None = None,
    ) -> None:
        """Take the parts, and what records the work of a device that can do so."""
        self._drafter = drafter
        self._vocabulary = vocabulary
        self._cache = cache
        self._kv_heads = drafter.config.num_key_value_heads
        self._scale = drafter.config.head_dim**-0.5
        self._window = drafter.config.sliding_window
        self._whole = drafter.whole(vocabulary.target_ids)
        self._graphs = None if record is None else ChainGraphs(self._on_device, record)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Chains of batches that are worth running before the first request."""
        return (1,) if self._graphs is None else self._graphs.sizes

    @property
    def device(self) -> torch.device:
        """Where chains run."""
        return self._drafter.device

    def prepare(self, features: Tensor | None) -> Tensor:
        """Features of any dtype and device as `Rows` take them; None stands for no rows."""
        if features is None:
            return self.zeros(0)
        return features.to(self._drafter.device, self._drafter.dtype)

    def zeros(self, rows: int) -> Tensor:
        """Features of no meaning."""
        width = self._drafter.config.target_hidden_size * len(self._drafter.config.aux_layers)
        return torch.zeros(rows, width, dtype=self._drafter.dtype, device=self._drafter.device)

    def finish(self) -> None:
        """Return once the device has done all that was asked of it."""
        finish(self._drafter.device)

    def penalties(self, opening: Opening) -> Penalties | None:
        """Penalties of a new sequence that knows its first token; None where it has none."""
        return Penalties.of(opening, self._vocabulary, self._drafter.device)

    @torch.inference_mode()
    def append(self, batch: Sequence[Rows], *, keys_only: bool = False) -> None:
        """Run new real entries in one pass. Rows of one sequence must be in order.

        With `keys_only` no chain can start from the last of them, only from later ones.
        """
        tokens = [token for rows in batch for token in rows.tokens]
        positions = [rows.start + i for rows in batch for i in range(len(rows.tokens))]
        slots = [
            rows.slot.start + rows.start + i for rows in batch for i in range(len(rows.tokens))
        ]
        rows = put([tokens, positions, slots], self._drafter.device)
        pieces = [rows.features for rows in batch]
        features = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        spans = [(part.slot.start, part.start, len(part.tokens)) for part in batch]
        reach = Reach(segments_of(spans, self._window))
        hidden = self._run(features, rows, reach, keys_only)
        at = 0
        for appended in batch:
            at += len(appended.tokens)
            appended.slot.hidden = None if hidden is None else hidden[at - 1].clone()

    def _run(self, features: Tensor, rows: Tensor, reach: Reach, keys_only: bool) -> Tensor | None:
        """What leaves the layer ``[n, H]`` for rows of ids, positions and slots ``[3, n]``.

        None with `keys_only`.
        """
        hidden = None
        if self._whole is not None:
            if not keys_only:
                hidden = features.new_empty(len(features), self._drafter.config.hidden_size)
            kv = self._cache.keys[0], self._cache.values[0]
            if self._whole.append(features, rows, reach, *kv, hidden):
                return hidden
        state = self._drafter.fuse(features)
        hidden = self._drafter.layer(rows[0], state, rows[1], self._attend(reach, rows[2]))
        return None if keys_only else hidden

    @torch.inference_mode()
    def draft(self, requests: Sequence[ChainRequest]) -> list[Guess]:
        """Run a chain for each request; longer ones go on with fewer rows."""
        order = sorted(range(len(requests)), key=lambda i: -requests[i].length)
        batch = [requests[i] for i in order]
        lengths = [request.length for request in batch]
        places = [r.base - 1 for r in batch], [r.slot.start for r in batch], lengths
        noise = self._noise(batch)
        hidden = torch.stack([r.slot.hidden for r in batch if r.slot.hidden is not None])
        chains = Chains(hidden, put(places, self._drafter.device), lengths[0], noise)
        drawn = None
        if not any(r.penalties for r in batch):
            drawn = self._at_once(chains, lengths)
        if drawn is None:
            drawn = self._step_by_step(batch, chains)
        winners, shares = (part.tolist() for part in fetch(*drawn))
        guesses: list[Guess] = [Guess((), ())] * len(order)
        for row, (request, length) in enumerate(zip(order, lengths, strict=True)):
            guesses[request] = self._guess(winners, shares, row, length)
        return guesses

    def _at_once(self, chains: Chains, lengths: Sequence[int]) -> Drawn | None:
        """All steps by one call, of a kernel or a graph; None where there is none."""
        if self._whole is not None:
            kv = self._cache.keys[0], self._cache.values[0]
            rows = chains.places[:2]
            if drawn := self._whole.draft(chains.hidden, lengths, rows, chains.noise, *kv):
                return drawn
        return None if self._graphs is None else self._graphs.draft(chains)

    def _guess(
        self, winners: list[list[int]], shares: list[list[float]], row: int, length: int
    ) -> Guess:
        """What a chain drew in its steps; logits that are no numbers draw the first token."""
        ids = self._vocabulary.ids
        return Guess(
            tuple(ids[max(0, step[row])] for step in winners[:length]),
            tuple(0.0 if math.isnan(s := step[row]) else min(s, 1.0) for step in shares[:length]),
        )

    def _step_by_step(self, batch: Sequence[ChainRequest], chains: Chains) -> Drawn:
        """What chains draw, called operator by operator."""
        penalties = [r.penalties.fork() if r.penalties else None for r in batch]
        bases, slabs = [r.base for r in batch], [r.slot.start for r in batch]
        lengths = [r.length for r in batch]
        steps = host_steps(bases, slabs, lengths, self._window, chains.places)

        def choose(logits: Tensor, step: int) -> Tensor:
            active = len(logits)
            return self._choose(logits, penalties[:active], _advanced(chains.noise, step, active))

        return self._run_steps(chains, steps, choose)

    def _on_device(self, chains: Chains) -> Drawn:
        """What chains draw, without a wait for the device: work that can be recorded."""
        steps = device_steps(chains.places, chains.longest, self._window, self._cache.spare)

        def choose(logits: Tensor, step: int) -> Tensor:
            noise = _advanced(chains.noise, step, len(logits))
            return kernels.draw(logits, noise, self._vocabulary.target_ids)

        return self._run_steps(chains, steps, choose)

    def _run_steps(
        self, chains: Chains, steps: Iterable[Step], choose: Callable[[Tensor, int], Tensor]
    ) -> Drawn:
        """Draw each chain's first token, then run its steps; zeros behind its end."""
        shape = chains.longest, len(chains.hidden)
        winners = torch.zeros(shape, dtype=torch.int64, device=chains.hidden.device)
        shares = torch.zeros(shape, device=chains.hidden.device)
        state, logits = self._drafter.finish(chains.hidden)
        ids = choose(logits, 0)
        winners[0], shares[0] = ids, kernels.shares(logits, ids)
        for number, step in enumerate(steps, 1):
            active = step.active
            tokens = self._vocabulary.target_ids[ids[:active].clamp(min=0)]
            attend = self._attend(step.reach, step.slots)
            hidden = self._drafter.layer(tokens, state[:active], step.positions, attend)
            state, logits = self._drafter.finish(hidden)
            ids = choose(logits, number)
            winners[number, :active] = ids
            shares[number, :active] = kernels.shares(logits, ids)
        return winners, shares

    def _noise(self, batch: Sequence[ChainRequest]) -> kernels.Noise | None:
        """The noise of each chain's first token."""
        return noise_of(
            [request.opening for request in batch],
            [request.base + 1 for request in batch],
            self._drafter.config.draft_temperature,
            self._drafter.device,
        )

    def _choose(
        self,
        logits: Tensor,
        penalties: Sequence[Penalties | None],
        noise: kernels.Noise | None,
    ) -> Tensor:
        """Draft ids int64 ``[n]`` of this step."""
        penalized = [(i, known) for i, known in enumerate(penalties) if known is not None]
        if penalized:
            logits = logits.to(torch.float32, copy=True)
            for i, known in penalized:
                logits[i] = known.apply(logits[i])
        ids = kernels.draw(logits, noise, self._vocabulary.target_ids)
        for i, known in penalized:
            known.extend([int(self._vocabulary.target_ids[ids[i]])])
        return ids

    def _attend(self, reach: Reach, slots: Tensor) -> Attend:
        """Attention of rows: keep their KV at ``slots``, int64 ``[n]``, then attend."""

        def attend(queries: Tensor, kv: Tensor, layer: int) -> Tensor:
            keys, values = self._cache.keys[layer], self._cache.values[layer]
            keys.index_copy_(0, slots, kv[:, : self._kv_heads])
            values.index_copy_(0, slots, kv[:, self._kv_heads :])
            return kernels.attend(queries, keys, values, reach, self._scale).flatten(1)

        return attend


def _advanced(noise: kernels.Noise | None, step: int, active: int) -> kernels.Noise | None:
    """The noise of the first rows, ``step`` tokens further on."""
    if noise is None:
        return None
    positions = noise.positions[:active] + step
    return kernels.Noise(
        noise.seeds[:active], positions, noise.choices[:active], noise.temperatures[:active]
    )
