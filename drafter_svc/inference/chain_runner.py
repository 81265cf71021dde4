"""Runs the steps of chains: replayed from a graph, as one kernel, or operator by operator."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

import speckernels as kernels
from drafter_svc.inference.attention import Attention
from drafter_svc.inference.chain_states import ChainStates
from drafter_svc.inference.chain_steps import Step, device_steps, host_steps
from drafter_svc.inference.cuda_graphs import CudaGraphs, least
from drafter_svc.inference.fused_model import FusedDrafter
from drafter_svc.inference.kv_cache import KVCache, Slab
from drafter_svc.inference.penalties import Penalties, PenaltyRows
from drafter_svc.inference.sampling import DraftVocabulary, noise_of
from speckernels import CapturedGraph, SamplingKeys, to_device_async
from speckernels.cuda_graph import Tensors
from specwire.messages import SequenceContext

# Chains of a batch as it is recorded, and the longest of them in tokens; others are filled up,
# and larger batches cut.
_SIZES = (1, 2, 4, 8, 16, 32, 64)
_LENGTHS = (1, 2, 3, 4, 5, 6, 8, 12, 16)


@dataclass(frozen=True, slots=True)
class ChainRequest:
    """``length`` draft tokens wished for after ``base`` real entries, at least one of each.

    The slab has ``base + length - 1`` rows at least. ``penalties`` know the committed tokens.
    """

    slot: Slab
    base: int
    length: int
    opening: SequenceContext
    penalties: Penalties | None = None


@dataclass(frozen=True, slots=True)
class ChainBatch:
    """A batch on a device.

    ``hidden`` ``[n, H]`` is what left the layer for the last real entries; ``places`` int64
    ``[3, n]`` has their positions, the slots of position 0, and the lengths, of which ``longest``
    is the most; ``noise`` is of the first tokens, None where all are greedy.
    """

    hidden: Tensor
    places: Tensor
    longest: int
    noise: SamplingKeys | None


#: Draft ids int64 and their shares fp32, both ``[longest, n]`` or larger.
Drawn = tuple[Tensor, Tensor]


class _Shape(NamedTuple):
    """What differs between graphs."""

    size: int
    longest: int
    drawn: bool


class ChainRunner:
    """Runs chains. All calls come from one thread."""

    def __init__(
        self,
        drafter: FusedDrafter,
        vocabulary: DraftVocabulary,
        whole: kernels.EagleKernel | None,
        cache: KVCache,
        states: ChainStates,
        recording: CapturedGraph | None,
    ) -> None:
        """Take the drafter, its form as one kernel if it has one, and what records its work."""
        self._drafter = drafter
        self._target_ids = vocabulary.target_ids
        self._whole = whole
        self._cache = cache
        self._states = states
        self._scale = drafter.config.head_dim**-0.5
        self._window = drafter.config.sliding_window
        self._graphs: CudaGraphs[_Shape] | None = None
        if recording is not None:
            self._graphs = CudaGraphs(self._recorded, _idle, _same, recording)
        # Fills recorded batches up: a chain of no length, whose first token is not looked at.
        self._filler = ChainRequest(Slab(cache.spare, 1, 0), 1, 0, SequenceContext(0, 1))
        #: Whether the last batch that a kernel was asked for was run by it.
        self.by_kernel = False

    @property
    def recorded(self) -> int:
        """Graphs there are."""
        return 0 if self._graphs is None else len(self._graphs)

    def shapes(self, longest: int) -> list[tuple[int, list[int]]]:
        """See `Chain.shapes`."""
        if self._graphs is None:
            return [(1, list(range(1, longest + 1)))]
        # The last length of each that is recorded.
        lengths = {least(_LENGTHS, length) or length: length for length in range(1, longest + 1)}
        return [(size, list(lengths.values())) for size in _SIZES]

    def draw(self, batch: Sequence[ChainRequest], penalties: PenaltyRows | None) -> Drawn:
        """What chains draw, longest first; ``penalties`` are theirs, one row each.

        It holds until the next call.
        """
        if penalties is not None:
            return self._step_by_step(batch, self._chains(batch), penalties)
        if (drawn := self._replayed(batch)) is not None:
            return drawn
        chains = self._chains(batch)
        if self._whole is not None:
            kv = self._cache.keys[0], self._cache.values[0]
            lengths = [request.length for request in batch]
            rows = chains.places[:2]
            drawn = self._whole.draft(chains.hidden, lengths, rows, chains.noise, *kv)
            self.by_kernel = drawn is not None
        return drawn or self._step_by_step(batch, chains, None)

    def _chains(self, batch: Sequence[ChainRequest]) -> ChainBatch:
        device = self._drafter.device
        places = [
            [request.base - 1 for request in batch],
            [request.slot.start for request in batch],
            [request.length for request in batch],
            [request.slot.number for request in batch],
        ]
        there = to_device_async(places, device)
        noise = noise_of(
            [request.opening for request in batch],
            [request.base + 1 for request in batch],
            self._drafter.config.draft_temperature,
            device,
        )
        hidden = self._states.rows.index_select(0, there[3])
        return ChainBatch(hidden, there[:3], batch[0].length, noise)

    def _replayed(self, batch: Sequence[ChainRequest]) -> Drawn | None:
        """What recorded chains draw; None where they cannot be recorded."""
        if self._graphs is None:
            return None
        most = _SIZES[-1]
        if len(batch) <= most:
            return self._replay(self._graphs, batch)
        device, shape = self._drafter.device, (batch[0].length, len(batch))
        winners = torch.zeros(shape, dtype=torch.int64, device=device)
        shares = torch.zeros(shape, device=device)
        for at in range(0, len(batch), most):
            group = batch[at : at + most]
            if (drawn := self._replay(self._graphs, group)) is None:
                return None
            # It holds until the next replay.
            length, stop = group[0].length, at + len(group)
            for kept, given in zip((winners, shares), drawn, strict=True):
                kept[:length, at:stop] = given[:length, : len(group)]
        return winners, shares

    def _replay(self, graphs: CudaGraphs[_Shape], batch: Sequence[ChainRequest]) -> Drawn | None:
        """What chains of one graph draw; None where they cannot be recorded."""
        size = least(_SIZES, len(batch)) or len(batch)
        chains = self._chains([*batch, *[self._filler] * (size - len(batch))])
        inputs: Tensors = chains.hidden, chains.places
        if (noise := chains.noise) is not None:
            keys = torch.stack([noise.seeds, noise.positions, noise.choices])
            inputs = *inputs, keys, noise.temperatures
        longest = least(_LENGTHS, chains.longest) or chains.longest
        drawn = graphs.run(_Shape(size, longest, noise is not None), inputs)
        return None if drawn is None else (drawn[0], drawn[1])

    def _recorded(self, shape: _Shape, inputs: Tensors) -> Tensors:
        """What chains draw, without a wait for the device: the work of a graph.

        Behind a chain's end are zeros.
        """
        hidden, places, *drawn = inputs
        noise = None
        if drawn:
            seeds, positions, choices = drawn[0]
            noise = SamplingKeys(seeds, positions, choices, drawn[1])
        steps = device_steps(places, shape.longest, self._window, self._cache.spare)
        winners, shares = self._run(ChainBatch(hidden, places, shape.longest, noise), steps, None)
        # Rows of chains that have ended share a slot, in no set order: what they draw may differ.
        numbers = torch.arange(shape.longest, device=places.device)
        runs = numbers[:, None] < places[2]
        return torch.where(runs, winners, 0), torch.where(runs, shares, 0)

    def _step_by_step(
        self, batch: Sequence[ChainRequest], chains: ChainBatch, penalties: PenaltyRows | None
    ) -> Drawn:
        """What chains draw, called operator by operator."""
        bases, slabs = [r.base for r in batch], [r.slot.start for r in batch]
        lengths = [r.length for r in batch]
        steps = host_steps(bases, slabs, lengths, self._window, chains.places)
        return self._run(chains, steps, penalties)

    def _run(
        self, chains: ChainBatch, steps: Iterable[Step], penalties: PenaltyRows | None
    ) -> Drawn:
        """Draw each chain's first token, then run its steps; zeros where there is no row."""
        shape = chains.longest, len(chains.hidden)
        winners = torch.zeros(shape, dtype=torch.int64, device=chains.hidden.device)
        shares = torch.zeros(shape, device=chains.hidden.device)
        state, logits = self._drafter.finish(chains.hidden)
        ids = self._choose(logits, chains.noise, 0, penalties)
        winners[0], shares[0] = ids, kernels.token_probs(logits, ids)
        for number, step in enumerate(steps, 1):
            active = step.active
            tokens = self._target_ids[ids[:active].clamp(min=0)]
            attention = Attention(self._cache, step.slots, step.reach, self._scale)
            hidden = self._drafter.layer(tokens, state[:active], step.positions, attention)
            state, logits = self._drafter.finish(hidden)
            ids = self._choose(logits, chains.noise, number, penalties)
            winners[number, :active] = ids
            shares[number, :active] = kernels.token_probs(logits, ids)
        return winners, shares

    def _choose(
        self, logits: Tensor, noise: SamplingKeys | None, step: int, penalties: PenaltyRows | None
    ) -> Tensor:
        """Draft ids int64 ``[n]`` of the first chains, ``step`` tokens behind their first ones."""
        if penalties is not None:
            logits = penalties.apply(logits)
        ids = kernels.sample(logits, _advanced(noise, step, len(logits)), self._target_ids)
        if penalties is not None:
            penalties.extend(ids)
        return ids


def _idle(inputs: Tensors) -> Tensors:
    """Chains of no length."""
    return tuple(torch.zeros_like(tensor) for tensor in inputs)


def _same(got: Tensors, wanted: Tensors) -> bool:
    """Whether chains drew the same; they may start from states that are not finite."""
    near = torch.allclose(got[1], wanted[1], atol=1e-3, equal_nan=True)
    return near and torch.equal(got[0], wanted[0])


def _advanced(noise: SamplingKeys | None, step: int, active: int) -> SamplingKeys | None:
    """The noise of the first rows, ``step`` tokens further on."""
    if noise is None:
        return None
    positions = noise.positions[:active] + step
    return SamplingKeys(
        noise.seeds[:active], positions, noise.choices[:active], noise.temperatures[:active]
    )
