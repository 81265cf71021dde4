"""Streams that decode, as batches that a target runs."""

from __future__ import annotations

from collections.abc import Iterable

from verifier_svc.blocks import BLOCK_SIZE, BlockPool, blocks_for
from verifier_svc.generation import Generation, Sampling
from verifier_svc.scheduler import Work
from verifier_svc.sequence import Sequence
from verifier_svc.target import Target


class Rounds:
    """So many greedy streams on a target, each with room for `length` tokens, and their KV."""

    def __init__(self, target: Target, streams: int, length: int) -> None:
        blocks = blocks_for(length)
        self.cache = target.reserve(blocks * streams, target.feature_width)
        pool = BlockPool(len(self.cache.features) // BLOCK_SIZE)
        self.sequences = [started(number, (1,), length) for number in range(streams)]
        for sequence in self.sequences:
            sequence.extent = pool.take(blocks)

    def works(self, position: int, rows: Iterable[int]) -> list[Work]:
        """Rows [position, position + n) of the first streams, all drawn from."""
        pairs = zip(self.sequences, rows, strict=False)
        return [
            Work(sequence, position, tuple(range(1, count + 1)), count) for sequence, count in pairs
        ]


def started(number: int, prompt: tuple[int, ...], length: int) -> Sequence:
    """A greedy stream of `length` tokens at most, prompt included."""
    sampling = Sampling(temperature=0.0, max_tokens=length - len(prompt), ignore_eos=True)
    given = Generation("gpu-check", prompt, len(prompt), sampling)
    return Sequence(number, given, frozenset(), length)
