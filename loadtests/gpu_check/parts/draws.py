"""Head and draws: the best token beside a product in fp32, and the race beside plain operators."""

from __future__ import annotations

import time

import torch
from torch import nn

import speckernels as kernels
from loadtests.gpu_check import system
from loadtests.gpu_check.bench import Bench
from loadtests.gpu_check.findings import Findings
from loadtests.gpu_check.profile import profile
from speckernels import SamplingKeys
from speckernels.exponential_noise import exponentials
from verifier_svc.model.lm_head import LMHead

# Two logits nearer than this may change places by how a sum is rounded, of logits around 1.
_TIE = 1e-4
# A race of operators starts some eighty kernels; the fused one a few.
_KERNELS = 16.0
_COMPILED = 60.0  # seconds
# Rows of the reference at a time: its noise is in fp64.
_CHUNK = 8


@torch.inference_mode()
def run(bench: Bench, findings: Findings) -> None:
    """See the module."""
    torch.manual_seed(0)
    _heads(bench, findings)
    shape = max(bench.shapes.drawn), bench.shapes.target["vocab_size"]
    logits = 3 * torch.randn(shape, device=bench.device)
    noise = _noise(shape[0], bench.device)
    wanted = _raced(logits, noise)
    for rows in bench.shapes.drawn:
        part, own = logits[:rows], _first(noise, rows)
        began = time.perf_counter()
        drawn = kernels.sample(part, own).tolist()
        findings.speed(f"first draw of {rows} rows", time.perf_counter() - began, _COMPILED, "s")
        different = sum(a != b for a, b in zip(drawn, wanted[:rows], strict=True))
        findings.at_most(f"{rows} rows: other winners than by operators", different, 0)
        took = bench.milliseconds(lambda p=part, o=own: kernels.sample(p, o))  # type: ignore[misc]
        findings.note(f"draw of {rows} rows", took, "ms")
    path = bench.options.out / "kernels-draw.txt"
    count = profile(lambda: kernels.sample(logits, noise), bench.device, path)
    findings.speed("kernels of a draw: it is fused", count, _KERNELS, "")
    _recorded(bench, findings, logits, noise)


def _heads(bench: Bench, findings: Findings) -> None:
    """The best token of each row, and what that takes."""
    shape, rows = bench.shapes.target, max(bench.shapes.drawn)
    linear = nn.Linear(shape["hidden_size"], shape["vocab_size"], bias=False, device=bench.device)
    linear = linear.to(torch.bfloat16).requires_grad_(False)
    head = LMHead(linear, None)
    hidden = torch.randn(rows, shape["hidden_size"], device=bench.device).to(torch.bfloat16)
    best = head.argmax(hidden)
    wanted = hidden.float() @ linear.weight.float().T
    behind = wanted.amax(-1) - wanted.gather(1, best[:, None].clamp(min=0))[:, 0]
    findings.at_most("best tokens: behind the best in fp32", float(behind.max()), _TIE)
    reckoned = bench.reckoned()
    for count in bench.shapes.drawn:
        took = bench.milliseconds(lambda n=count: head.argmax(hidden[:n]))  # type: ignore[misc]
        findings.speed(f"head and best token of {count} rows", took, reckoned.logits(count))


def _recorded(bench: Bench, findings: Findings, logits: torch.Tensor, noise: SamplingKeys) -> None:
    """A draw inside of recorded work, over other logits than those it was recorded with."""
    rows = bench.shapes.drawn[-1]
    kept, own = logits[:rows].clone(), _first(noise, rows)
    results, replay = system.recorder(bench.device)(lambda: (kernels.sample(kept, own),))
    kept.copy_(logits[:rows].flip(-1))
    replay()
    wanted = _raced(kept, own)
    different = sum(a != b for a, b in zip(results[0].tolist(), wanted, strict=True))
    findings.at_most("recorded: other winners than by operators", different, 0)


def _noise(rows: int, device: torch.device) -> SamplingKeys:
    numbers = torch.arange(rows, device=device)
    temperatures = torch.where(numbers % 4 == 3, 0.0, 0.5 + numbers % 3 / 2).float()
    return SamplingKeys(numbers * 7919 - 5, numbers + 100, numbers % 2, temperatures)


def _first(noise: SamplingKeys, rows: int) -> SamplingKeys:
    return SamplingKeys(
        noise.seeds[:rows], noise.positions[:rows], noise.choices[:rows], noise.temperatures[:rows]
    )


def _raced(logits: torch.Tensor, noise: SamplingKeys) -> list[int]:
    """Winners by the rule, operator by operator and few rows at a time."""
    ids = torch.arange(logits.shape[1], device=logits.device)
    winners: list[int] = []
    for first in range(0, len(logits), _CHUNK):
        rows = slice(first, first + _CHUNK)
        seeds, positions, choices = (
            part[rows, None] for part in (noise.seeds, noise.positions, noise.choices)
        )
        drawn = exponentials(seeds, positions, ids, choices)
        hot = noise.temperatures[rows] > 0
        scaled = logits[rows] / torch.where(hot, noise.temperatures[rows], 1.0)[:, None]
        values = scaled.double()
        ratios = drawn * torch.exp(values.amax(-1, keepdim=True) - values)
        won = torch.where(hot, ratios.argmin(-1), logits[rows].argmax(-1))
        winners += won.tolist()
    return winners
