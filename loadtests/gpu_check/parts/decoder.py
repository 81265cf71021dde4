"""Two layers of the target's width: which form runs, whether it is recorded, what graphs take."""

from __future__ import annotations

import torch
from transformers import LlamaConfig

from loadtests.capacity.random_models import random_target
from loadtests.gpu_check import system
from loadtests.gpu_check.bench import Bench, apart, rounding
from loadtests.gpu_check.findings import Findings
from loadtests.gpu_check.rounds import Rounds
from verifier_svc.model.target import Target

_LAYERS = 2
_GRAPH_MIB = 64.0


@torch.inference_mode()
def run(bench: Bench, findings: Findings) -> None:
    """See the module."""
    config = LlamaConfig(**bench.shapes.target_of(_LAYERS))
    target = random_target(config, "two layers", bench.dtype, bench.device)
    findings.holds("recorded after its own trial", system.recorded(target), system.form(target))
    streams = max(count for count, _ in bench.shapes.batches)
    rounds = Rounds(target, streams, bench.shapes.context + 16)
    before, begun = bench.reserved(), system.graphs(target)
    far = max(_compared(target, rounds, bench, batch) for batch in bench.shapes.batches)
    findings.at_most("recorded and called: error", far, rounding(bench.dtype))
    count = system.graphs(target) - begun
    findings.at_least("graphs of these batches", count, 1)
    grown = bench.reserved() - before
    findings.speed("memory of a graph", grown / max(1, count), _GRAPH_MIB, "MiB")
    target.capture((0, _LAYERS))
    rounds.cache.resize_features(target.feature_width)
    far = _compared(target, rounds, bench, bench.shapes.batches[0])
    findings.at_most("after another capture: error", far, rounding(bench.dtype))
    findings.holds("still recorded", system.recorded(target))
    findings.note("graphs in all", system.graphs(target))


def _compared(target: Target, rounds: Rounds, bench: Bench, batch: tuple[int, int]) -> float:
    """How far recorded states and features of a batch are from called ones."""
    streams, rows = batch
    works = rounds.works(bench.shapes.context, [rows] * streams)
    slots = [work.slot + work.position + i for work in works for i in range(rows)]
    left = []
    for called in (False, True):
        if called:
            with system.eager(target):
                hidden = target.run(works, rounds.cache)
        else:
            hidden = target.run(works, rounds.cache)
        left.append((hidden.clone(), rounds.cache.features[slots].clone()))
    return max(map(apart, *left))
