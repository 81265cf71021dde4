"""Chains of a GPU: all steps of a batch as one recorded graph."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from specwire.kernels import Noise, Record, Recording, called

# Chains of a batch as it is recorded; others are filled up by chains of no length.
_SIZES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Chains:
    """A batch on a device.

    ``hidden`` ``[n, H]`` is what left the layer for the last real entries; ``places`` int64
    ``[3, n]`` has their positions, the slots of position 0, and the lengths, of which ``longest``
    is the most; ``noise`` is of the first tokens, None where all are greedy.
    """

    hidden: Tensor
    places: Tensor
    longest: int
    noise: Noise | None


#: Draft ids int64 and their shares fp32, both ``[longest, n]``.
Drawn = tuple[Tensor, Tensor]


class _Shape(NamedTuple):
    """What differs between graphs."""

    size: int
    longest: int
    drawn: bool


class _Graph:
    """Chains of one shape, recorded over tensors of their own."""

    def __init__(
        self, run: Callable[[Chains], Drawn], record: Record, shape: _Shape, hidden: Tensor
    ) -> None:
        size, device = shape.size, hidden.device
        self._hidden = hidden.new_zeros(size, hidden.shape[1])
        self._places = torch.zeros(3, size, dtype=torch.int64, device=device)
        self._keys = self._places.clone()
        self._temperatures = torch.zeros(size, device=device)
        seeds, positions, choices = self._keys
        noise = Noise(seeds, positions, choices, self._temperatures) if shape.drawn else None
        chains = Chains(self._hidden, self._places, shape.longest, noise)
        self._results, self._replay = record(lambda: run(chains))

    def run(self, chains: Chains) -> Drawn:
        """What chains of this shape or fewer draw, until the next run of any graph."""
        count = len(chains.hidden)
        self._hidden[:count] = chains.hidden
        self._places[:, :count] = chains.places
        # Chains of no length fill the batch up; their first tokens are not looked at.
        self._places[:, count:] = 0
        if (noise := chains.noise) is not None:
            self._keys[:, :count] = torch.stack([noise.seeds, noise.positions, noise.choices])
            self._temperatures[:count] = noise.temperatures
        self._replay()
        winners, shares = self._results
        return winners[:, :count], shares[:, :count]


class ChainGraphs:
    """Runs batches of chains as graphs, each recorded and tried where it is first needed."""

    sizes = _SIZES

    def __init__(self, run: Callable[[Chains], Drawn], record: Record) -> None:
        """Take what runs a batch on the device without waiting for it, and what records that."""
        self._run = run
        self._recording = Recording(record)
        self._graphs: dict[_Shape, _Graph] = {}

    def draft(self, chains: Chains) -> Drawn | None:
        """What the chains draw; None where they are too many, or cannot be recorded."""
        size = next((size for size in _SIZES if size >= len(chains.hidden)), None)
        if size is None:
            return None
        shape = _Shape(size, chains.longest, chains.noise is not None)
        if shape not in self._graphs:
            graph = self._recording.attempt(lambda record: self._recorded(record, shape, chains))
            if graph is None:
                return None
            self._graphs[shape] = graph
        return self._graphs[shape].run(chains)

    def _recorded(self, record: Record, shape: _Shape, chains: Chains) -> _Graph:
        """A new graph, if it draws what it would without being recorded.

        Raises:
            RuntimeError: it does not, or cannot be recorded.
        """
        graph = _Graph(self._run, record, shape, chains.hidden)
        plain = _Graph(self._run, called, shape, chains.hidden)
        got, wanted = (each.run(chains) for each in (graph, plain))
        # A chain may start from a state that is not finite.
        near = torch.allclose(got[1], wanted[1], atol=1e-3, equal_nan=True)
        if not near or not torch.equal(got[0], wanted[0]):
            raise RuntimeError("a graph draws something else than what was recorded.")
        return graph
