"""Held-out numbers against the same numbers counted one position at a time."""

from pathlib import Path

import pytest
import torch

from drafter_svc.train.data import Batch
from drafter_svc.train.initial import drafter_config, initial_drafter
from drafter_svc.train.measure import TEMPERATURES, Measurement, measure
from drafter_svc.train.target import load_target
from drafter_svc.train.ttt import unroll

STEPS = 2


def test_agreement_and_overlap_are_counted_over_the_whole_vocabulary(tiny_llama: Path) -> None:
    target = load_target(str(tiny_llama))
    draft_ids = torch.arange(60) + 20
    drafter = initial_drafter(drafter_config(target, 60), target, draft_ids, 0)
    drafter = drafter.to(torch.bfloat16)
    torch.manual_seed(0)
    batch = Batch(torch.randint(2, 97, (2, 20)), torch.tensor([[False] * 4 + [True] * 16] * 2))
    measured = measure(drafter, target, draft_ids, [batch], steps=STEPS)

    features, _ = target.capture(batch.ids, drafter.config.aux_layers)
    with torch.no_grad():
        logits = target.model(batch.ids).logits.float()
        columns = torch.arange(19)
        chain = list(
            unroll(drafter, target.embedding, batch, features, steps=STEPS, columns=columns)
        )
        for k, step in enumerate(chain):
            agreed, overlap = [], []
            for row in range(2):
                for i in range(3, 20 - 2 - k):
                    drafted = drafter.logits(step.hidden[row, i])
                    p, q = logits[row, i + 1 + k].softmax(-1), torch.zeros(97)
                    q[draft_ids] = (drafted / measured.draft_temperature).softmax(-1)
                    agreed.append(float(draft_ids[drafted.argmax()] == p.argmax()))
                    overlap.append(float(torch.minimum(p, q).sum()))
            assert measured.top1[k] == pytest.approx(sum(agreed) / len(agreed), abs=1e-6)
            assert measured.overlap[k] == pytest.approx(sum(overlap) / len(overlap), abs=2e-2)
            assert 0 < measured.overlap[k] < 1
    assert measured.positions == 2 * (18 - 3)
    assert measured.draft_temperature in TEMPERATURES


def test_acceptance_length_multiplies_the_steps() -> None:
    measured = Measurement([0.5, 0.5, 0.2], [0.0] * 3, 1.0, 1)
    assert measured.acceptance_length == pytest.approx(1 + 0.5 + 0.25 + 0.05)
