"""One stream, greedy, in several dtypes: the text with drafts is the text without them."""

from __future__ import annotations

import torch
from transformers import LlamaConfig

from loadtests.capacity.random_models import random_target
from loadtests.gpu_check.bench import Bench
from loadtests.gpu_check.compared import compare
from loadtests.gpu_check.findings import Findings


@torch.inference_mode()
def run(bench: Bench, findings: Findings) -> None:
    """See the module."""
    config = LlamaConfig(**bench.shapes.target_of(bench.shapes.text_layers))
    for dtype in bench.shapes.dtypes:
        target = random_target(config, "target", dtype, bench.device)
        prompt = tuple((7 * i + 3) % target.vocab_size for i in range(bench.shapes.context))
        name = str(dtype).removeprefix("torch.")
        compare(target, prompt, bench.shapes.text).judge(findings, name)
        del target
