"""The target's forward with its head: recorded and called, beside what its bytes should take."""

from __future__ import annotations

import torch
from transformers import LlamaConfig

from loadtests.capacity.random_models import random_target
from loadtests.gpu_check import system
from loadtests.gpu_check.bench import Bench, apart, rounding
from loadtests.gpu_check.findings import Findings
from loadtests.gpu_check.profile import profile
from loadtests.gpu_check.rounds import Rounds

# Kernels of a recorded layer, products among them, with what a batch is prepared by.
_NODES = 24.0


@torch.inference_mode()
def run(bench: Bench, findings: Findings) -> None:
    """See the module."""
    config = LlamaConfig(**bench.shapes.target_of())
    target = random_target(config, "target", bench.dtype, bench.device)
    reckoned = bench.reckoned()
    findings.holds("it is recorded", system.recorded(target), system.form(target))
    batches = bench.shapes.batches
    rounds = Rounds(target, max(n for n, _ in batches), bench.shapes.context + 16)
    profiled = {batches[0], batches[-1]}
    for streams, rows in batches:
        works = rounds.works(bench.shapes.context, [rows] * streams)

        def step() -> torch.Tensor:
            return target.head.argmax(target.run(works, rounds.cache))  # noqa: B023

        name = f"{streams} x {rows} rows"
        findings.speed(name, bench.milliseconds(step), reckoned.forward(streams * rows))
        got = target.run(works, rounds.cache).clone()
        with system.eager(target):
            findings.note(f"{name}, called", bench.milliseconds(step), "ms")
            wanted = target.run(works, rounds.cache).clone()
        # A deep target rounds more often than a trial of few layers.
        bar = rounding(bench.dtype) * (config.num_hidden_layers / 2) ** 0.5
        findings.at_most(f"{name}: error", apart(got, wanted), bar)
        if (streams, rows) in profiled:
            path = bench.options.out / f"kernels-{streams * rows}.txt"
            count = profile(lambda: target.run(works, rounds.cache), bench.device, path)  # noqa: B023
            nodes = count / config.num_hidden_layers
            findings.speed(f"{name}: kernels a layer", nodes, _NODES, "")
    findings.holds("it still is", system.recorded(target))
