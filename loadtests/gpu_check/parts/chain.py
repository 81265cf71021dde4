"""The drafter's step: rows appended and chains drafted, recorded beside operator by operator."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import torch
from transformers import LlamaConfig

from drafter_svc.engine.messages import RoundMessage
from drafter_svc.engine.worker import Worker
from drafter_svc.model.eagle import EagleDrafter
from loadtests.capacity.random_models import random_drafter, random_target
from loadtests.gpu_check import system
from loadtests.gpu_check.bench import Bench
from loadtests.gpu_check.findings import Findings
from loadtests.gpu_check.reckoned import host
from speckernels import synchronize
from specwire.messages import NO_DRAFT, AppendEntries, DraftBudget, SequenceContext

_LENGTH, _ROWS = 3, 3
_MEMORY = 1 << 29
# A target of more layers captures as many states.
_LAYERS = 8
# Milliseconds of Python and of launches that no kernel hides.
_HOST = {1: 0.7, 16: 1.3, 64: 4.0}
# Of draft tokens: those that rounding may change.
_DIFFERENT = 0.02


@torch.inference_mode()
def run(bench: Bench, findings: Findings) -> None:
    """See the module."""
    layers = min(_LAYERS, bench.shapes.target["num_hidden_layers"])
    config = LlamaConfig(**bench.shapes.target_of(layers))
    target = random_target(config, "target", bench.dtype, bench.device)
    module = random_drafter(target).to(bench.dtype).eval().requires_grad_(False)
    del target
    recorded, plain = (
        system.drafter(module, _MEMORY, _LENGTH, record)
        for record in (system.recorder(bench.device), None)
    )
    reckoned = bench.reckoned()
    for temperature, kind in ((0.0, "greedy"), (1.0, "drawn")):
        different = tokens = 0
        for streams in bench.shapes.streams:
            one, other = (
                _Streams(worker, module, bench, streams, temperature)
                for worker in (recorded, plain)
            )
            drafts = [each.steps(_LENGTH) for each in (one, other)]
            pairs = zip(one.drafted, other.drafted, strict=True)
            different += sum(a != b for a, b in pairs)
            tokens += len(one.drafted)
            bar = reckoned.drafted(streams, _ROWS, _LENGTH) + host(streams, _HOST)
            findings.speed(f"{streams} streams, {kind}", drafts[0], bar)
            findings.note(f"{streams} streams, {kind}, step by step", drafts[1], "ms")
            if not temperature:
                findings.note(f"{streams} streams, append alone", one.steps(0), "ms")
            for each in (one, other):
                each.close()
        share = different / tokens if tokens else 1.0
        findings.at_most(f"{kind}: share of other tokens than step by step", share, _DIFFERENT)
    findings.holds("chains are recorded", system.chains_recorded(recorded[0]))


class _Streams:
    """Sequences of one link of a worker, which go on by a few entries a step."""

    def __init__(
        self,
        worker: tuple[Worker, int],
        module: EagleDrafter,
        bench: Bench,
        streams: int,
        temperature: float,
    ) -> None:
        self.drafted: list[int] = []
        self._worker, self._link = worker
        self._bench = bench
        config = module.config
        self._vocabulary = config.vocab_size
        self._width = config.target_hidden_size * len(config.aux_layers)
        self._generator = torch.Generator(bench.device).manual_seed(streams)
        self._length = 0
        self._openings = {
            seq: SequenceContext(1, 1, seed=seq, temperature=temperature)
            for seq in range(1, streams + 1)
        }
        for seq in self._openings:
            self._serve([seq], bench.shapes.context, 0)
        self._length = bench.shapes.context

    def steps(self, length: int) -> float:
        """Milliseconds of a step in which each drafts `length` tokens; the median of several."""
        took = []
        for number in range(2 + self._bench.shapes.repeats):
            began = time.perf_counter()
            drafts = self._serve(list(self._openings), _ROWS, length)
            synchronize(self._bench.device)
            if number >= 2:
                took.append(1e3 * (time.perf_counter() - began))
            self._length += _ROWS
            self.drafted += [token for draft in drafts for token in draft]
        return median(took)

    def close(self) -> None:
        """End them."""
        self._worker.serve([RoundMessage(self._link, (), None, tuple(self._openings), 0.0)])

    def _serve(self, seqs: Sequence[int], rows: int, length: int) -> list[tuple[int, ...]]:
        """Append rows of noise to each; returns drafts by sequence."""
        shape = len(seqs) * rows, self._width
        device = self._bench.device
        features = torch.randn(shape, generator=self._generator, device=device)
        wish = DraftBudget(chain=length) if length else NO_DRAFT
        extends = tuple(
            AppendEntries(
                seq,
                self._length,
                tuple((seq * 31 + self._length + i) % self._vocabulary for i in range(rows)),
                wish,
                None if self._length else self._openings[seq],
            )
            for seq in seqs
        )
        message = RoundMessage(self._link, extends, features.to(self._bench.dtype), (), 0.0)
        drafts = self._worker.serve([message])[self._link].drafts
        return [draft.tokens for draft in sorted(drafts, key=lambda draft: draft.seq)]
