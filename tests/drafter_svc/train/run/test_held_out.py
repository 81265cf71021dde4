"""Held-out numbers against the same numbers counted one position at a time."""

from pathlib import Path

import pytest
import torch

from drafter_svc.train.data.documents import Document
from drafter_svc.train.evaluation.replay import Rounds, draft_chains, walk
from drafter_svc.train.objective.ttt import plan_chain, unroll
from drafter_svc.train.run.distill_batch import TargetFeatures
from drafter_svc.train.run.held_out import TEMPERATURES, measure
from drafter_svc.train.run.init_weights import drafter_config, initial_drafter
from drafter_svc.train.target.local_source import LocalSource
from drafter_svc.train.target.target import load_target

STEPS, LENGTH = 2, 20


def test_agreement_overlap_and_acceptance_are_counted_by_definition(tiny_llama: Path) -> None:
    target = load_target(str(tiny_llama))
    draft_ids = torch.arange(60) + 20
    drafter = initial_drafter(drafter_config(target, 60), target, draft_ids, 0)
    drafter = drafter.to(torch.bfloat16)
    torch.manual_seed(0)
    mask = [False] * 4 + [True] * 16
    documents = [Document(torch.randint(2, 97, (LENGTH,)).tolist(), mask) for _ in range(2)]
    aux_layers = drafter.config.aux_layers
    room = TargetFeatures(
        LocalSource(load_target(str(tiny_llama))),
        aux_layers,
        target.head,
        prompts=False,
        totals=False,
    )
    lesson = room.prepare(documents)
    measured = measure(
        drafter, target.embedding, target.head, draft_ids, [lesson], steps=STEPS, stride=1
    )

    with torch.no_grad():
        ids = torch.tensor([document.ids for document in documents])
        logits = target.model(ids).logits.float().flatten(0, 1)
        plan = plan_chain(lesson.batch, STEPS)
        chain = list(unroll(drafter, target.embedding, lesson.batch, lesson.features, plan))
        for k in range(STEPS):
            agreed, overlap = [], []
            for start in (0, LENGTH):
                for i in range(start + 3, start + LENGTH - 2 - k):
                    at = int((plan[k].columns == i).nonzero())
                    if k and i > start + LENGTH - 4:
                        continue
                    drafted = drafter.logits(chain[k][at])
                    p, q = logits[i + 1 + k].softmax(-1), torch.zeros(97)
                    q[draft_ids] = (drafted / measured.draft_temperature).softmax(-1)
                    agreed.append(float(draft_ids[drafted.argmax()] == p.argmax()))
                    overlap.append(float(torch.minimum(p, q).sum()))
            assert measured.top1[k] == pytest.approx(sum(agreed) / len(agreed), abs=1e-6)
            assert measured.overlap[k] == pytest.approx(sum(overlap) / len(overlap), abs=2e-2)
            assert 0 < measured.overlap[k] < 1
        rounds = Rounds(STEPS)
        for document, features in zip(documents, torch.split(lesson.features, LENGTH), strict=True):
            columns = torch.arange(3, LENGTH - 1)
            proposals = draft_chains(
                drafter,
                target.embedding,
                draft_ids,
                torch.tensor(document.ids),
                features,
                columns=columns,
                length=STEPS,
            )
            walk(rounds, document.ids, 4, proposals.tolist())
    assert measured.acceptance_length == pytest.approx(rounds.acceptance_length)
    assert measured.positions == 2 * (18 - 3)
    assert measured.draft_temperature in TEMPERATURES
