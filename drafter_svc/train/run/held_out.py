"""Held-out measurements: how often the chain agrees with the target, step by step."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from drafter_svc.model.eagle import EagleDrafter
from drafter_svc.train.evaluation.replay import Rounds, draft_chains, walk
from drafter_svc.train.objective.ttt import plan_chain, unroll
from drafter_svc.train.run.distill_batch import DistillBatch

#: Candidates for t_d.
TEMPERATURES = tuple(round(0.4 + 0.05 * index, 2) for index in range(13))
# Rows whose whole distributions exist at a time.
_ROWS = 256


@dataclass(frozen=True, slots=True)
class Measurement:
    """On held-out text, per chain step over the live columns unless said otherwise.

    ``top1`` is the share where drafter and target have the same argmax, teacher-forced;
    ``overlap`` is the mean of sum min(p, q) at temperature 1 over the whole vocabulary (1 - TV),
    with the drafter's logits divided by ``draft_temperature``, the candidate that is best over
    all steps. ``acceptance_length`` is of greedy chains replayed on the text: tokens per
    verification, bonus included. ``positions`` counts the columns of step 0.
    """

    top1: list[float]
    overlap: list[float]
    draft_temperature: float
    acceptance_length: float
    positions: int


@torch.no_grad()
def measure(
    drafter: EagleDrafter,
    embedding: nn.Embedding,
    head: Tensor,
    draft_ids: Tensor,
    lessons: Sequence[DistillBatch],
    *,
    steps: int,
    stride: int = 1,
    replayed: int = 6000,
    temperatures: Sequence[float] = TEMPERATURES,
) -> Measurement:
    """Unroll ``steps`` steps from every ``stride``-th answer position of ``lessons``.

    ``head`` ``[vocab, H]`` is the target's output layer. Chains of ``steps`` drafts are replayed
    on the first ``replayed`` answer tokens. ``temperatures`` are the candidates for t_d.
    """
    counts, agreed = torch.zeros(steps), torch.zeros(steps)
    overlaps = torch.zeros(steps, len(temperatures))
    for lesson in lessons:
        plan = plan_chain(lesson.batch, steps, stride=stride)
        chain = unroll(drafter, embedding, lesson.batch, lesson.features, plan)
        for k, (step, hidden) in enumerate(zip(plan, chain, strict=True)):
            live = step.live & (lesson.batch.positions[step.columns] % stride == 0)
            counts[k] += int(live.sum())
            pairs = torch.split(hidden[live], _ROWS), torch.split(step.teacher[live], _ROWS)
            for states, rows in zip(*pairs, strict=True):
                logits = drafter.logits(states)
                teacher = (lesson.final[rows] @ head.T).float()
                agreed[k] += (draft_ids[logits.argmax(-1)] == teacher.argmax(-1)).sum().cpu()
                probabilities = teacher.softmax(-1)[:, draft_ids]
                for candidate, temperature in enumerate(temperatures):
                    drafted = (logits / temperature).softmax(-1)
                    overlaps[k, candidate] += torch.minimum(probabilities, drafted).sum().cpu()
    means = overlaps / counts[:, None].clamp(min=1)
    best = int(means.mean(dim=0).argmax())
    return Measurement(
        top1=(agreed / counts.clamp(min=1)).tolist(),
        overlap=means[:, best].tolist(),
        draft_temperature=temperatures[best],
        acceptance_length=_replay(drafter, embedding, draft_ids, lessons, steps, replayed),
        positions=int(counts[0]),
    )


def _replay(
    drafter: EagleDrafter,
    embedding: nn.Embedding,
    draft_ids: Tensor,
    lessons: Iterable[DistillBatch],
    length: int,
    limit: int,
) -> float:
    rounds = Rounds(length)
    for ids, features, start, stop in _answers(lessons):
        if limit <= 0:
            break
        stop = min(stop, start + limit)
        limit -= stop - start
        columns = torch.arange(start - 1, stop - 1, device=ids.device)
        proposals = draft_chains(
            drafter,
            embedding,
            draft_ids,
            ids[:stop],
            features[:stop],
            columns=columns,
            length=length,
        )
        walk(rounds, ids[:stop].tolist(), start, proposals.tolist())
    return rounds.acceptance_length


def _answers(lessons: Iterable[DistillBatch]) -> Iterator[tuple[Tensor, Tensor, int, int]]:
    """(ids, features, start, stop) of each run of answer tokens ``[start, stop)``, by document."""
    for lesson in lessons:
        lengths = list(lesson.batch.lengths)
        documents = (torch.split(t, lengths) for t in (lesson.batch.ids, lesson.batch.answer))
        for ids, answer, features in zip(
            *documents, torch.split(lesson.features, lengths), strict=True
        ):
            edges = torch.nn.functional.pad(answer.int(), (1, 1)).diff()
            starts = (edges == 1).nonzero().flatten().tolist()
            stops = (edges == -1).nonzero().flatten().tolist()
            for start, stop in zip(starts, stops, strict=True):
                yield ids, features, max(1, start), stop
