"""Streams that decode, as batches that a target runs."""

from __future__ import annotations

from collections.abc import Iterable

from verifier_svc.kv.block_pool import BLOCK_SIZE, BlockPool, blocks_for
from verifier_svc.model.target import Target
from verifier_svc.request.sequence import Sequence
from verifier_svc.request.types import GenerationRequest, Sampling
from verifier_svc.scheduling.scheduler import ScheduledRows


class Rounds:
    """So many greedy streams on a target, each with room for `length` tokens, and their KV."""

    def __init__(self, target: Target, streams: int, length: int) -> None:
        blocks = blocks_for(length)
        self.cache = target.reserve(blocks * streams, target.feature_width)
        pool = BlockPool(len(self.cache.features) // BLOCK_SIZE)
        self.sequences = [started(number, (1,), length) for number in range(streams)]
        for sequence in self.sequences:
            sequence.extent = pool.take(blocks)

    def works(self, position: int, rows: Iterable[int]) -> list[ScheduledRows]:
        """Rows [position, position + n) of the first streams, all drawn from."""
        pairs = zip(self.sequences, rows, strict=False)
        return [
            ScheduledRows(sequence, position, tuple(range(1, count + 1)), count)
            for sequence, count in pairs
        ]


def started(number: int, prompt: tuple[int, ...], length: int) -> Sequence:
    """A greedy stream of `length` tokens at most, prompt included."""
    sampling = Sampling(temperature=0.0, max_tokens=length - len(prompt), ignore_eos=True)
    given = GenerationRequest("gpu-check", prompt, len(prompt), sampling)
    return Sequence(number, given, frozenset(), length)
